//! Lists: filtered, sorted, and cut into pages, the same for every resource.
//!
//! Invariant: a page and the one that its link names have no member twice and leave none out, while nothing changes.

use std::cmp::Ordering;
use std::sync::Arc;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::ask::{Ask, truth};
use super::fault::Fault;
use super::fields::{map, text};
use crate::papers::Paper;

/// Most members of a page.
const MAX_PAGE: usize = 1000;

/// What may be asked of a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Members that filters of the same name compare with.
    pub(crate) filters: &'static [&'static str],
    /// Members that can be sorted by, `id` and `created_at` besides.
    pub(crate) sorts: &'static [&'static str],
    /// What is not found when the marker is not: `Volume`.
    pub(crate) what: &'static str,
}

/// A page.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) papers: Vec<Arc<Paper>>,
    /// Of all that pass the filters.
    pub(crate) total: usize,
    next: Option<String>,
}

impl Page {
    /// `{many: [...]}` with a link to the next page, and the count where it is asked for.
    pub(crate) fn body(&self, ask: &Ask, many: &str, show: impl Fn(&Arc<Paper>) -> Value) -> Value {
        let mut body = Map::new();
        body.insert(many.to_owned(), self.papers.iter().map(show).collect());
        if let Some(next) = &self.next {
            body.insert(format!("{many}_links"), json!([{ "rel": "next", "href": next }]));
        }
        if ask.since(45) && ask.param_flag("with_count") {
            body.insert("count".to_owned(), json!(self.total));
        }
        Value::Object(body)
    }
}

/// The page that a request asks for.
pub(crate) fn page(ask: &Ask, rules: Rules, papers: Vec<Arc<Paper>>) -> Result<Page, Fault> {
    let order = order(ask, rules)?;
    let (limit, given) = limit(ask)?;
    let offset = whole(ask, "offset")?.unwrap_or(0);
    let mut found: Vec<Arc<Paper>> = papers.into_iter().filter(|paper| passes(ask, rules, paper)).collect();
    found.sort_by(|a, b| compare(a, b, &order));
    let total = found.len();
    let after = match ask.param("marker") {
        None => 0,
        Some(marker) => {
            let at = found.iter().position(|paper| text(paper, "id") == marker);
            at.ok_or_else(|| Fault::missing(format!("{} {marker}", rules.what)))? + 1
        }
    };
    let papers: Vec<_> = found.into_iter().skip(after).skip(offset).take(limit).collect();
    let full = papers.len() == limit && (given || limit == MAX_PAGE);
    let last = papers.last().filter(|_| full && limit > 0);
    let next = last.map(|last| next_link(ask, text(last, "id")));
    Ok(Page { papers, total, next })
}

fn next_link(ask: &Ask, marker: &str) -> String {
    let plain = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let kept = ask.query.iter().filter(|(name, _)| !matches!(name.as_str(), "marker" | "offset"));
    let mut pairs: Vec<String> =
        kept.map(|(name, value)| format!("{}={}", plain(name), plain(value))).collect();
    pairs.push(format!("marker={marker}"));
    let host = ask.base.strip_suffix("/v3").unwrap_or(&ask.base);
    format!("{host}{}?{}", ask.path, pairs.join("&"))
}

fn whole(ask: &Ask, name: &str) -> Result<Option<usize>, Fault> {
    let Some(given) = ask.param(name) else { return Ok(None) };
    let number = given.parse::<i64>().map_err(|_| Fault::bad(format!("{name} param must be an integer")))?;
    let number = usize::try_from(number).ok().filter(|number| i32::try_from(*number).is_ok());
    number.map(Some).ok_or_else(|| Fault::bad(format!("{name} param must be a number from 0 on")))
}

/// The length of a page, and whether it was given.
fn limit(ask: &Ask) -> Result<(usize, bool), Fault> {
    let given = whole(ask, "limit")?;
    Ok((given.unwrap_or(MAX_PAGE).min(MAX_PAGE), given.is_some()))
}

/// Keys and whether each is descending.
fn order(ask: &Ask, rules: Rules) -> Result<Vec<(String, bool)>, Fault> {
    let mut order = Vec::new();
    if let Some(sort) = ask.param("sort") {
        for one in sort.split(',') {
            let (key, direction) = one.split_once(':').unwrap_or((one, "desc"));
            order.push((key.trim().to_owned(), direction.trim().to_owned()));
        }
    } else {
        let key = ask.param("sort_key").unwrap_or("created_at");
        order.push((key.to_owned(), ask.param("sort_dir").unwrap_or("desc").to_owned()));
    }
    let mut checked = Vec::new();
    for (key, direction) in order {
        let key = match key.strip_prefix("display_") {
            Some(plain) => plain.to_owned(),
            None => key,
        };
        let known = matches!(key.as_str(), "id" | "created_at") || rules.sorts.contains(&key.as_str());
        if !known {
            return Err(Fault::bad(format!("Invalid input received: Invalid sort keys provided: {key}")));
        }
        let down = match direction.as_str() {
            "asc" => false,
            "desc" => true,
            _ => return Err(Fault::bad("Invalid sort direction, must be 'asc' or 'desc'.")),
        };
        checked.push((key, down));
    }
    let down = checked.last().is_none_or(|(_, down)| *down);
    checked.push(("id".to_owned(), down));
    Ok(checked)
}

fn compare(a: &Paper, b: &Paper, order: &[(String, bool)]) -> Ordering {
    let one = |(key, down): &(String, bool)| {
        let natural = match (a.get(key), b.get(key)) {
            (Some(Value::Number(a)), Some(Value::Number(b))) => a.as_i64().cmp(&b.as_i64()),
            _ => text(a, key).cmp(text(b, key)),
        };
        if *down { natural.reverse() } else { natural }
    };
    order.iter().map(one).find(|order| *order != Ordering::Equal).unwrap_or(Ordering::Equal)
}

fn passes(ask: &Ask, rules: Rules, paper: &Paper) -> bool {
    ask.query.iter().all(|(name, wanted)| {
        let (name, like) = match name.strip_suffix('~') {
            Some(plain) if ask.since(34) => (plain, true),
            _ => (name.as_str(), false),
        };
        let key = name.strip_prefix("display_").unwrap_or(name);
        if !rules.filters.contains(&key) {
            return true;
        }
        match key {
            "metadata" => has_all(&map(paper, "metadata"), wanted),
            "created_at" | "updated_at" => in_time(text(paper, key), wanted),
            "project_id" if !ask.everywhere() => true,
            _ => equal(paper.get(key).unwrap_or(&Value::Null), wanted, like),
        }
    })
}

fn equal(found: &Value, wanted: &str, like: bool) -> bool {
    match found {
        Value::String(text) if like => text.contains(wanted),
        Value::String(text) => text == wanted,
        Value::Bool(flag) => truth(wanted) == Some(*flag),
        Value::Null => wanted.is_empty() || wanted == "None",
        Value::Number(number) => number.to_string() == wanted,
        _ => false,
    }
}

/// `{'key': 'value'}` as Python writes it, or JSON.
fn has_all(metadata: &Map<String, Value>, wanted: &str) -> bool {
    let parsed = serde_json::from_str::<Value>(wanted).or_else(|_| {
        let text = wanted.replace("u'", "'").replace('\'', "\"");
        serde_json::from_str::<Value>(&text)
    });
    let Ok(Value::Object(wanted)) = parsed else { return false };
    wanted.iter().all(|(key, value)| metadata.get(key) == Some(value))
}

/// `gt:TIME`, `lte:TIME` …, several with commas; no operator: equal.
fn in_time(found: &str, wanted: &str) -> bool {
    wanted.split(',').all(|one| {
        let (operator, time) = match one.split_once(':') {
            Some((operator @ ("gt" | "gte" | "lt" | "lte" | "eq" | "neq"), time)) => (operator, time),
            _ => ("eq", one),
        };
        // Times sort as texts; what both have is compared.
        let time = time.trim_end_matches('Z');
        let length = time.len().min(found.len());
        let order = found.get(..length).unwrap_or(found).cmp(time.get(..length).unwrap_or(time));
        match operator {
            "gt" => order == Ordering::Greater,
            "gte" => order != Ordering::Less,
            "lt" => order == Ordering::Less,
            "lte" => order != Ordering::Greater,
            "neq" => order != Ordering::Equal,
            _ => order == Ordering::Equal,
        }
    })
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::super::ask::{Caller, query};
    use super::*;

    const RULES: Rules = Rules {
        filters: &["name", "status", "metadata", "bootable"],
        sorts: &["name", "size"],
        what: "Volume",
    };

    fn ask(text: &str) -> Ask {
        Ask {
            method: Method::GET,
            query: query(text),
            minor: 45,
            caller: Caller::default(),
            base: "http://n:8776/v3".to_owned(),
            path: "/v3/volumes".to_owned(),
            body: Value::Null.into(),
            id: String::new(),
            token: String::new().into(),
            images: None,
            image_authority: None,
        }
    }

    fn papers() -> Vec<Arc<Paper>> {
        let one = |(n, name): (usize, &str)| {
            let value = json!({ "id": format!("{n}"), "name": name, "size": 10 - n, "bootable": n == 1,
                "created_at": format!("2026-01-0{n}T00:00:00.000000"), "metadata": { "n": format!("{n}") } });
            Arc::new(value.as_object().unwrap().clone())
        };
        [(1, "b"), (2, "a"), (3, "c")].into_iter().map(one).collect()
    }

    fn ids(text: &str) -> Result<String, u16> {
        let page = page(&ask(text), RULES, papers()).map_err(|fault| fault.status)?;
        Ok(page.papers.iter().map(|paper| super::text(paper, "id")).collect())
    }

    #[test]
    fn lists_are_sorted_filtered_and_cut() {
        for (query, found) in [
            ("", "321"),
            ("sort=id:asc", "123"),
            ("sort_key=name&sort_dir=asc", "213"),
            ("sort_key=display_name&sort_dir=desc", "312"),
            ("sort=size:asc", "321"),
            ("limit=2", "32"),
            ("limit=0", ""),
            ("limit=100000", "321"),
            ("offset=2&limit=3", "1"),
            ("marker=2", "1"),
            ("marker=2&sort=id:asc", "3"),
            ("name=a", "2"),
            ("name~=", "321"),
            ("status=null", ""),
            ("bootable=True", "1"),
            ("metadata=%7B%27n%27%3A+%273%27%7D", "3"),
            ("unknown=x", "321"),
        ] {
            assert_eq!(ids(query).as_deref(), Ok(found), "{query}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (query, status) in [
            ("limit=invalid", 400),
            ("limit=-1", 400),
            ("offset=99999999999", 400),
            ("sort_key=invalid", 400),
            ("sort=id:up", 400),
            ("marker=9", 404),
        ] {
            assert_eq!(ids(query), Err(status), "{query}");
        }
    }

    #[test]
    fn links_lead_through_all_pages() {
        let body = page(&ask("limit=1&sort=id:asc&with_count=true"), RULES, papers()).unwrap();
        let body = body.body(&ask("with_count=true"), "volumes", |paper| json!(super::text(paper, "id")));
        assert_eq!(body["volumes"], json!(["1"]));
        assert_eq!(body["count"], 3);
        let link = body["volumes_links"][0]["href"].as_str().unwrap();
        assert!(link.starts_with("http://n:8776/v3/volumes?limit=1&sort=id%3Aasc"), "{link}");
        assert!(link.ends_with("&marker=1"), "{link}");
        let whole = page(&ask(""), RULES, papers()).unwrap().body(&ask(""), "volumes", |_| Value::Null);
        assert!(whole.get("volumes_links").is_none() && whole.get("count").is_none());
    }

    #[test]
    fn times_compare() {
        let at = "2026-01-02T03:04:05.000000";
        assert!(in_time(at, "gt:2026-01-01T00:00:00,lt:2026-01-03T00:00:00"));
        assert!(in_time(at, "2026-01-02T03:04:05") && !in_time(at, "neq:2026-01-02T03:04:05"));
    }
}
