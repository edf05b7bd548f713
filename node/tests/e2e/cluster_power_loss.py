"""`kill -9` of all nodes of a cluster at once, in the middle of real `swift upload`s; after each, what clients were told is there.

What must hold after each start:
- all nodes are ready, and serve, within a time;
- every acknowledged object is there through every node, whole, in the listing once, and the counts are exact;
- what was under way is there whole, or not at all: the old bytes or the new ones, the same through every node.

Environment: SEED (default random; printed), ROUNDS (default 4; twenty for a long look), NODES (default 3).
"""

import http.client
import os
import random
import time

from cluster_process import CONTAINER, FORM_LIMIT, Ledger, Member, Upload, check, cluster, together, wait_until

SERVE_LIMIT = 20.0


def serves(member):
    try:
        return member.account().request("HEAD", CONTAINER).status == 204
    except (OSError, http.client.HTTPException, AssertionError):
        return False


def write_and_kill(it, seed, round_, ledger, rng):
    """Uploads through all nodes, until all nodes are killed together; returns what to print."""
    uploads = [Upload(it, ledger, n, 60, random.Random(f"{seed}/{round_}/{n}"), 0, nodes=[it.members[n]]) for n in range(len(it.members))]
    before = ledger.acknowledged
    for upload in uploads:
        upload.start()
    # A client takes half a second to begin; after that the moment is chance.
    wait_until(lambda: ledger.acknowledged > before or not all(upload.is_alive() for upload in uploads), 60.0, "uploads begin")
    time.sleep(rng.uniform(0.0, 3.0))
    for member in it.members:
        member.process.kill()
    for member in it.members:
        member.kill()
    for upload in uploads:
        upload.finish()
    return f"{ledger.acknowledged - before} acknowledged"


def start_all(it, limit):
    took = max(together(lambda member: member.start_in_time(), it.members))
    served = wait_until(lambda: all(serves(member) for member in it.members), limit, "all nodes serve")
    return f"start-up {took:.1f} s, all serve {served:.1f} s later"


def main():
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    rounds, nodes = int(os.environ.get("ROUNDS", "4")), int(os.environ.get("NODES", "3"))
    rng, ledger = random.Random(seed), Ledger()
    with cluster("cluster-power-loss", ["1G"] * nodes) as it:
        print(f"power loss: reproduce with  SEED={seed} ROUNDS={rounds} NODES={nodes}", flush=True)
        print(f"formed: all groups have their voters after {wait_until(it.formed, FORM_LIMIT, 'groups with all voters', it.groups):.1f} s more", flush=True)
        it.members[0].account().expect((201, 202), "PUT", CONTAINER)
        for round_ in range(1, rounds + 1):
            told = write_and_kill(it, seed, round_, ledger, rng)
            print(f"round {round_}: {told}; {start_all(it, SERVE_LIMIT)}", flush=True)
            check(it, ledger)
        print(f"logs: {it.check_logs()}", flush=True)
        together(Member.stop, it.members)
    print(f"power loss: {rounds} times, {ledger.acknowledged} acknowledged writes, none lost", flush=True)


if __name__ == "__main__":
    main()
