//! The bytes of a paper (node/FORMAT-papers.md): a version, then one value; hand-laid-out, little-endian.
//!
//! Invariant: equal papers have equal bytes: members of a map are in ascending order of their names.
//! Invariant: bytes decode to what was encoded or to [`BadPaper`]; never a panic, and nothing deeper than [`MAX_DEPTH`].

use serde_json::{Map, Number, Value};

/// First byte of every paper.
const VERSION: u8 = 1;
/// Lists and maps within one another.
const MAX_DEPTH: usize = 16;

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const WHOLE: u8 = 3;
const FRACTION: u8 = 4;
const TEXT: u8 = 5;
const LIST: u8 = 6;
const MAP: u8 = 7;

/// Bytes that are no paper of a version that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a paper is unreadable, or of a newer version")]
pub(crate) struct BadPaper;

/// The bytes of a paper; [`BadPaper`] when it is nested too deep, or a number is out of range.
pub(crate) fn encode(paper: &Map<String, Value>) -> Result<Vec<u8>, BadPaper> {
    let mut out = vec![VERSION];
    put_map(&mut out, paper, 0)?;
    Ok(out)
}

/// The paper that bytes are.
pub(crate) fn decode(bytes: &[u8]) -> Result<Map<String, Value>, BadPaper> {
    let mut reader = Reader(bytes);
    if reader.array()? != [VERSION] {
        return Err(BadPaper);
    }
    match (reader.value(0)?, reader.0) {
        (Value::Object(map), []) => Ok(map),
        _ => Err(BadPaper),
    }
}

fn put_map(out: &mut Vec<u8>, map: &Map<String, Value>, depth: usize) -> Result<(), BadPaper> {
    let mut members: Vec<_> = map.iter().collect();
    members.sort_unstable_by(|a, b| a.0.cmp(b.0));
    out.push(MAP);
    put_count(out, members.len())?;
    for (name, value) in members {
        put_text(out, name)?;
        put_value(out, value, depth + 1)?;
    }
    Ok(())
}

fn put_value(out: &mut Vec<u8>, value: &Value, depth: usize) -> Result<(), BadPaper> {
    if depth > MAX_DEPTH {
        return Err(BadPaper);
    }
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(false) => out.push(FALSE),
        Value::Bool(true) => out.push(TRUE),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => {
                out.push(WHOLE);
                out.extend_from_slice(&whole.to_le_bytes());
            }
            None => {
                out.push(FRACTION);
                out.extend_from_slice(&number.as_f64().ok_or(BadPaper)?.to_bits().to_le_bytes());
            }
        },
        Value::String(text) => {
            out.push(TEXT);
            put_text(out, text)?;
        }
        Value::Array(list) => {
            out.push(LIST);
            put_count(out, list.len())?;
            list.iter().try_for_each(|value| put_value(out, value, depth + 1))?;
        }
        Value::Object(map) => put_map(out, map, depth)?,
    }
    Ok(())
}

fn put_count(out: &mut Vec<u8>, count: usize) -> Result<(), BadPaper> {
    out.extend_from_slice(&u32::try_from(count).map_err(|_| BadPaper)?.to_le_bytes());
    Ok(())
}

fn put_text(out: &mut Vec<u8>, text: &str) -> Result<(), BadPaper> {
    put_count(out, text.len())?;
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadPaper> {
        let (field, rest) = self.0.split_first_chunk().ok_or(BadPaper)?;
        self.0 = rest;
        Ok(*field)
    }

    /// A count of things of which each takes a byte at least.
    fn count(&mut self) -> Result<usize, BadPaper> {
        let count = usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| BadPaper)?;
        if count <= self.0.len() { Ok(count) } else { Err(BadPaper) }
    }

    fn text(&mut self) -> Result<String, BadPaper> {
        let length = self.count()?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(BadPaper)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| BadPaper)
    }

    fn value(&mut self, depth: usize) -> Result<Value, BadPaper> {
        if depth > MAX_DEPTH {
            return Err(BadPaper);
        }
        let [tag] = self.array()?;
        Ok(match tag {
            NULL => Value::Null,
            FALSE => Value::Bool(false),
            TRUE => Value::Bool(true),
            WHOLE => Value::from(i64::from_le_bytes(self.array()?)),
            FRACTION => {
                let fraction = f64::from_bits(u64::from_le_bytes(self.array()?));
                Value::Number(Number::from_f64(fraction).ok_or(BadPaper)?)
            }
            TEXT => Value::String(self.text()?),
            LIST => {
                let count = self.count()?;
                Value::Array((0..count).map(|_| self.value(depth + 1)).collect::<Result<_, _>>()?)
            }
            MAP => {
                let count = self.count()?;
                let mut map = Map::new();
                for _ in 0..count {
                    let name = self.text()?;
                    map.insert(name, self.value(depth + 1)?);
                }
                Value::Object(map)
            }
            _ => return Err(BadPaper),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> Map<String, Value> {
        let value = json!({ "b": [null, true, false, -2, 1.5], "a": { "name": "\u{fc}" }, "c": {} });
        value.as_object().unwrap().clone()
    }

    #[test]
    fn papers_have_these_bytes_for_ever() {
        let expected = "0107030000000100000061070100000004000000\
                        6e616d650502000000c3bc010000006206050000000002\
                        0103feffffffffffffff04000000000000f83f010000006307000000\
                        00";
        assert_eq!(hex::encode(encode(&sample()).unwrap()), expected.replace(' ', ""));
        assert_eq!(decode(&hex::decode(expected).unwrap()), Ok(sample()));
    }

    #[test]
    fn what_is_cut_changed_or_too_deep_is_an_error_or_another_paper_and_no_panic() {
        let bytes = encode(&sample()).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), Err(BadPaper), "{cut}");
        }
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 0xff;
            assert_ne!(decode(&other), Ok(sample()), "{at}");
        }
        let mut deep = json!(1);
        for _ in 0..MAX_DEPTH + 1 {
            deep = json!([deep]);
        }
        let mut map = Map::new();
        map.insert("deep".to_owned(), deep);
        assert_eq!(encode(&map), Err(BadPaper));
        let nested =
            [&[VERSION, MAP, 1, 0, 0, 0, 1, 0, 0, 0, b'a'][..], &[LIST, 1, 0, 0, 0].repeat(99)].concat();
        assert_eq!(decode(&nested), Err(BadPaper));
    }
}
