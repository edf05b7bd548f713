//! Users that a node was given become the cluster's, if it has none of their names.
//!
//! Invariant: what the cluster has is never replaced by what a node was given.
//! Invariant: the users that the founder made for itself are taken over once: whoever is removed later stays removed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quarry_engine::net::{Request, Response, Transport, Wish};
use tokio::sync::watch;

use super::people::{People, founded_key, founded_value, project_key, user_key, v1_key};
use super::state::{KeyValue, State};
use crate::auth::{Listed, rows_of};

/// Pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one row may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Introduces them; returns when the cluster has them all. `founds`: this node made the cluster.
pub(super) async fn introduce(
    net: Arc<dyn Transport>,
    mut state: watch::Receiver<Arc<State>>,
    listed: Listed,
    founds: bool,
) {
    let mut said: Option<String> = None;
    loop {
        let Ok(seen) = state.wait_for(|state| state.settings.is_some()).await.map(|state| Arc::clone(&state))
        else {
            return;
        };
        let made = founds && !seen.people.founded;
        let listed = listed.clone();
        // Verifiers take a processor some milliseconds each.
        let written = match worked_out(move || missing(&listed, &seen.people, made)).await {
            Ok(rows) => write(&*net, rows).await,
            Err(why) => Err(why),
        };
        match written.err() {
            None => return,
            Some(why) if said.as_ref() != Some(&why) => {
                tracing::warn!("introduce users to the cluster: {why}; it is tried again");
                said = Some(why);
            }
            Some(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What another thread makes of it; that it came to no end is not that there is nothing.
async fn worked_out<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("work out what is missing: {error}"))
}

async fn write(net: &dyn Transport, rows: Vec<KeyValue>) -> Result<(), String> {
    for (key, value) in rows {
        let wish = Request::Wish(Wish::Row { key, value: Some(value), fresh: true });
        match net.call(net.local(), wish, WITHIN).await.map_err(|e| e.to_string())? {
            Response::Done => {}
            Response::Failed(failure) => return Err(failure.to_string()),
            _ => return Err("the leader answered another question".to_owned()),
        }
    }
    Ok(())
}

/// Rows that the cluster lacks; `made`: also those of the users that this node made for itself, and that they were taken over.
fn missing(listed: &Listed, people: &People, made: bool) -> Vec<KeyValue> {
    let known = keys(people);
    let mut rows = rows_of(&listed.own, |key| !known.contains(key));
    if made {
        let own: BTreeSet<Vec<u8>> = rows.iter().map(|(key, _)| key.clone()).collect();
        let absent = |key: &[u8]| !known.contains(key) && !own.contains(key);
        rows.extend(listed.made.iter().flat_map(|made| rows_of(made, absent)));
        rows.push((founded_key(), founded_value()));
    }
    rows
}

fn keys(people: &People) -> BTreeSet<Vec<u8>> {
    let projects = people.projects.keys().map(|id| project_key(id));
    let users = people.users.keys().map(|id| user_key(id));
    people.v1_users.keys().map(|name| v1_key(name)).chain(projects).chain(users).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Auth, Source};

    fn list(text: &str) -> Auth {
        Auth::parse(Source { file: Path::new("users"), text }).unwrap()
    }

    fn user(name: &str) -> String {
        format!("[[v1_user]]\naccount = \"test\"\nuser = \"{name}\"\nkey = \"k\"\n")
    }

    fn take(people: &mut People, rows: Vec<KeyValue>) -> usize {
        let many = rows.len();
        rows.into_iter().for_each(|(key, value)| people.take(&key[2..], &value).unwrap());
        many
    }

    #[test]
    fn what_a_founder_made_is_taken_over_once_and_what_is_listed_whenever_it_is_missing() {
        let demo = "[[project]]\nname = \"demo\"\n[[user]]\nname = \"demo\"\npassword = \"p\"\nroles = { demo = [\"admin\"] }\n";
        let made = Some(list(&format!("{}{demo}", user("made"))));
        let listed = Listed { test: None, own: list(&user("own")), made };
        let mut people = People::default();
        let rows = missing(&listed, &people, true);
        assert_eq!(take(&mut people, rows), 5);
        assert!(people.founded && people.v1_users["test:made"].verifier.knows("k"));
        let project = people.projects.keys().next().unwrap().clone();
        assert_eq!(people.users.values().next().unwrap().roles[&project], ["admin"]);
        assert!(missing(&listed, &people, false).is_empty());
        people.v1_users.clear();
        let again = missing(&listed, &people, false);
        assert_eq!(again.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), [b"kuvtest:own"]);
    }

    /// It was taken for "nothing is missing", and nobody was introduced until the next start.
    #[tokio::test]
    async fn a_worker_that_panicked_has_not_said_that_nothing_is_missing() {
        let failed = worked_out(|| -> Vec<KeyValue> { panic!("planted") }).await;
        assert!(failed.unwrap_err().contains("panic"));
        assert_eq!(worked_out(|| 7).await, Ok(7));
    }

    #[test]
    fn a_user_that_is_listed_and_made_is_the_listed_one() {
        let listed = Listed { test: None, own: list(&user("one")), made: Some(list(&user("one"))) };
        assert_eq!(missing(&listed, &People::default(), true).len(), 2);
    }
}
