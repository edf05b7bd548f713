"""A real Glance, of the Python environment that GLANCE_VENV names (`pip install glance gunicorn`), over a node's Keystone.

Invariant: a Glance that a test started is gone when the test ends, however it ends.
"""

import contextlib
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

from openstack_volumes import openstack

PASSWORD = "a long secret"


def there():
    """Where Glance is installed; nothing where it is not."""
    venv = os.environ.get("GLANCE_VENV")
    return pathlib.Path(venv) if venv and (pathlib.Path(venv) / "bin/gunicorn").exists() else None


def free_port(host):
    with socket.socket() as it:
        it.bind((host, 0))
        return it.getsockname()[1]


def certificate(path, host):
    """A certificate for an address, of an authority that is made for it: `ca.pem`, `server.pem`, `server.key`."""
    ask = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=IP:{host}", "-addext", "basicConstraints=critical,CA:FALSE"]
    by = ["-CA", path / "ca.pem", "-CAkey", path / "ca.key"]
    run = lambda *words: subprocess.run(list(map(str, words)), check=True, capture_output=True)
    run(*ask, "-x509", "-subj", "/CN=an authority", "-keyout", path / "ca.key", "-out", path / "ca.pem")
    run(*ask, "-x509", *by, *name, "-keyout", path / "server.key", "-out", path / "server.pem")


class Glance:
    """`secure`: reached by https alone."""

    def __init__(self, path, host, port=None, secure=False):
        self.venv, self.path, self.process = there(), path / "glance", None
        self.path.mkdir()
        for folder in ("images", "staging", "tasks"):
            (self.path / folder).mkdir()
        self.place = f"{host}:{port or free_port(host)}"
        # Where its certificate is.
        self.keys = self.path if secure else None
        self.url = f"{'https' if secure else 'http'}://{self.place}"
        if secure:
            certificate(self.path, host)
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("OS_")}

    def register(self, it):
        """What an operator does once: a user that Glance asks about tokens as, and a place in the catalog."""
        openstack(it, "project", "create", "service")
        openstack(it, "user", "create", "--password", PASSWORD, "glance")
        openstack(it, "role", "add", "--project", "service", "--user", "glance", "admin", parsed=False)
        openstack(it, "service", "create", "--name", "glance", "image")
        for interface in ("public", "internal"):
            openstack(it, "endpoint", "create", "--region", "RegionOne", "image", interface, self.url)

    def configure(self, it):
        identity, path = it.env["OS_AUTH_URL"], self.path
        (paste,) = self.venv.rglob("glance-api-paste.ini")
        (path / "glance-api.conf").write_text(f"""[DEFAULT]
enabled_backends = disk:file
[glance_store]
default_backend = disk
[disk]
filesystem_store_datadir = {path}/images
[os_glance_staging_store]
filesystem_store_datadir = {path}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {path}/tasks
[database]
connection = sqlite:///{path}/glance.db
[keystone_authtoken]
www_authenticate_uri = {identity}
auth_url = {identity}
auth_type = password
username = glance
password = {PASSWORD}
user_domain_id = default
project_name = service
project_domain_id = default
[oslo_policy]
enforce_scope = false
[paste_deploy]
flavor = keystone
config_file = {paste}
""")

    def start(self, it):
        """Also anew: the node's ports may be others."""
        self.configure(it)
        programs, conf = self.venv / "bin", str(self.path / "glance-api.conf")
        env = {**self.env, "OS_GLANCE_CONFIG_DIR": str(self.path)}
        subprocess.run([programs / "glance-manage", "--config-file", conf, "db_sync"], check=True, env=env, capture_output=True)
        log = open(self.path / "glance.log", "ab")
        # Threads, as long as an image takes.
        server = ["-k", "gthread", "--threads", "8", "--timeout", "600", "-b", self.place]
        if self.keys:
            server += ["--certfile", str(self.keys / "server.pem"), "--keyfile", str(self.keys / "server.key")]
        trusted = ssl.create_default_context(cafile=self.keys and self.keys / "ca.pem")
        command = [programs / "python", "-m", "gunicorn", *server, "glance.wsgi.api:application"]
        self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        log.close()
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5, context=trusted).close()
                return
            except urllib.error.HTTPError:
                return  # 300: which version is wanted
            except OSError:
                assert time.monotonic() < end and self.process.poll() is None, self.tail()
                time.sleep(0.2)

    def kill(self):
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def tail(self):
        return (self.path / "glance.log").read_text(errors="replace")[-4000:]

    def stored(self, image):
        """The file that has an image's bytes."""
        (found,) = (self.path / "images").rglob(image)
        return found


@contextlib.contextmanager
def glance(path, it, host="127.0.0.1", service=None):
    service = service or Glance(path, host)
    try:
        service.register(it)
        service.start(it)
        yield service
    except BaseException:
        print(service.tail() if (service.path / "glance.log").exists() else "glance: did not begin", flush=True)
        raise
    finally:
        service.kill()
