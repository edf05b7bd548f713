//! Members of papers and of requests: what they are when they are there, and what requests may say.
//!
//! Invariant: a text that a client gives has a limit before it is kept.

pub(crate) use crate::block::moving::is_id;
use serde_json::{Map, Value, json};

use super::ask::truth;
use super::fault::Fault;
use crate::papers::Paper;
use crate::storage::{random_bytes, wall_clock};

/// Microseconds after which no request goes on that makes something.
const LONGEST_MAKING: u64 = 600_000_000;
/// Longest name, description, key or value.
const MAX_TEXT: usize = 255;
/// Most entries of a map that a client gives.
const MAX_ENTRIES: usize = 256;

/// A text; empty when it is none.
pub(crate) fn text<'a>(paper: &'a Paper, name: &str) -> &'a str {
    paper.get(name).and_then(Value::as_str).unwrap_or("")
}

/// A whole number; 0 when it is none.
pub(crate) fn number(paper: &Paper, name: &str) -> i64 {
    paper.get(name).and_then(Value::as_i64).unwrap_or(0)
}

/// A flag; false when it is none.
pub(crate) fn flag(paper: &Paper, name: &str) -> bool {
    paper.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// A map; empty when it is none.
pub(crate) fn map(paper: &Paper, name: &str) -> Map<String, Value> {
    paper.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// The texts of a list.
pub(crate) fn texts(paper: &Paper, name: &str) -> Vec<String> {
    let list = paper.get(name).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The member, or null.
pub(crate) fn value(paper: &Paper, name: &str) -> Value {
    paper.get(name).cloned().unwrap_or(Value::Null)
}

/// A paper of an object that a `json!` made.
pub(crate) fn paper(value: Value) -> Paper {
    match value {
        Value::Object(map) => map,
        _ => Paper::new(),
    }
}

/// A fresh random UUID (RFC 9562, version 4).
pub(crate) fn fresh_id() -> String {
    let mut bytes: [u8; 16] = random_bytes();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Now, as Cinder writes times: no zone, microseconds.
pub(crate) fn now() -> String {
    time_text(wall_clock())
}

/// Microseconds since 1970 as Cinder writes times.
pub(crate) fn time_text(micros: u64) -> String {
    let seconds = crate::auth::iso8601(micros / 1_000_000);
    let whole = seconds.get(..19).unwrap_or(&seconds);
    format!("{whole}.{:06}", micros % 1_000_000)
}

/// The state of what is made by its request. What is `creating` for longer than any request lasts is made by nobody any more: whoever did was
/// killed, or its caller has gone.
pub(crate) fn made_state(paper: &Paper) -> &str {
    let state = text(paper, "status");
    let long_ago = time_text(wall_clock().saturating_sub(LONGEST_MAKING));
    if state == "creating" && text(paper, "created_at") < long_ago.as_str() { "error" } else { state }
}

/// A name or description that a request gives: `None` when it says nothing, `Some(null)` when it says that there is none.
pub(crate) fn given_text(from: &Map<String, Value>, names: &[&str]) -> Result<Option<Value>, Fault> {
    let Some((name, given)) = names.iter().find_map(|name| Some((name, from.get(*name)?))) else {
        return Ok(None);
    };
    match given {
        Value::Null => Ok(Some(Value::Null)),
        Value::String(text) if text.chars().count() <= MAX_TEXT => Ok(Some(json!(text.trim()))),
        Value::String(_) => Err(Fault::bad(format!("{name} has more than {MAX_TEXT} characters."))),
        _ => Err(Fault::bad(format!("Invalid input for field/attribute {name}: it is no text."))),
    }
}

/// A name that must be there.
pub(crate) fn needed_name(from: &Map<String, Value>) -> Result<String, Fault> {
    match given_text(from, &["name"])? {
        Some(Value::String(name)) if !name.is_empty() => Ok(name),
        _ => Err(Fault::bad("Invalid input for field/attribute name: it has 1 to 255 characters.")),
    }
}

/// A map of texts, as metadata and specs are. Numbers and flags become texts where `loose`.
pub(crate) fn text_map(given: &Value, loose: bool) -> Result<Map<String, Value>, Fault> {
    let map = given.as_object().ok_or_else(|| Fault::bad("Metadata and specs are maps of texts."))?;
    if map.len() > MAX_ENTRIES {
        return Err(Fault::bad(format!("At most {MAX_ENTRIES} entries.")));
    }
    let mut texts = Map::new();
    for (key, value) in map {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) if loose => number.to_string(),
            Value::Bool(true) if loose => "True".to_owned(),
            Value::Bool(false) if loose => "False".to_owned(),
            _ => return Err(Fault::bad(format!("Invalid input for field/attribute {key}: it is no text."))),
        };
        let fits = (1..=MAX_TEXT).contains(&key.chars().count()) && text.chars().count() <= MAX_TEXT;
        if !fits {
            return Err(Fault::bad(format!("Keys and values have at most {MAX_TEXT} characters.")));
        }
        texts.insert(key.clone(), json!(text));
    }
    Ok(texts)
}

/// A yes or no that a request gives, also as a text.
pub(crate) fn given_flag(given: &Value, name: &str) -> Result<bool, Fault> {
    let flag = match given {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => truth(text),
        Value::Number(number) => {
            number.as_i64().and_then(|n| [false, true].get(usize::try_from(n).ok()?).copied())
        }
        _ => None,
    };
    flag.ok_or_else(|| Fault::bad(format!("Invalid value for {name}: it is true or false.")))
}

/// A whole number that a request gives, also as a text.
pub(crate) fn given_number(given: &Value, name: &str) -> Result<i64, Fault> {
    let number = match given {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| Fault::bad(format!("Invalid input received: {name} must be an integer.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_uuids() {
        let (a, b) = (fresh_id(), fresh_id());
        assert!(is_id(&a) && is_id(&b) && a != b, "{a} {b}");
        assert_eq!(a.as_bytes()[14], b'4');
        assert!(!is_id("nope") && !is_id(&a.replace('-', "a")));
    }

    #[test]
    fn times_have_microseconds_and_no_zone() {
        assert_eq!(time_text(951_782_400_000_042), "2000-02-29T00:00:00.000042");
    }

    #[test]
    fn numbers_and_flags_may_be_texts() {
        assert_eq!(given_number(&json!("7"), "size"), Ok(7));
        assert_eq!(given_number(&json!(7), "size"), Ok(7));
        for bad in [json!(""), json!("#$%"), json!(null), json!(1.5)] {
            assert_eq!(given_number(&bad, "size").map_err(|fault| fault.status), Err(400), "{bad}");
        }
        assert_eq!(given_flag(&json!("True"), "f"), Ok(true));
        assert_eq!(given_flag(&json!(0), "f"), Ok(false));
        assert!(given_flag(&json!("maybe"), "f").is_err());
    }

    #[test]
    fn maps_hold_texts_with_limits() {
        assert!(text_map(&json!({ "a": "b" }), false).is_ok());
        for bad in [json!({ "a": 1 }), json!({ "": "b" }), json!({ "a": "b".repeat(256) }), json!(["a"])] {
            assert!(text_map(&bad, false).is_err(), "{bad}");
        }
        assert_eq!(text_map(&json!({ "a": 1, "b": true }), true).unwrap()["b"], "True");
    }
}
