//! A reader of the part of Python's pickle protocol 2 that Swift's builder files use.
//!
//! Invariant: nothing in the input is ever called: of all names only `array.array` and `bytearray` have a meaning here.
//! Invariant: memory is bounded by the length of the input, and that by [`MAX_BYTES`].

use std::collections::BTreeMap;

/// Longest input: a builder of 2^22 partitions and 3 replicas fits.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// Why bytes are no pickle that is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// More than is read.
    #[error("{0} bytes are more than {MAX_BYTES}")]
    TooLong(usize),
    /// It ends early.
    #[error("it ends in the middle of byte {0}")]
    Cut(usize),
    /// An operation that builder files do not have.
    #[error("byte {at}: operation {opcode:#04x} is not understood")]
    Opcode {
        /// Where.
        at: usize,
        /// Which.
        opcode: u8,
    },
    /// An operation with the wrong things before it.
    #[error("byte {0}: an operation does not fit what stands before it")]
    Operands(usize),
    /// A name that builder files do not have.
    #[error("byte {0}: a Python name is not understood")]
    Name(usize),
    /// Text that is no UTF-8.
    #[error("byte {0}: text is not UTF-8")]
    Text(usize),
}

/// A value; the large ones are in the heap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Object(u32),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object {
    Text(String),
    /// Lists, tuples and arrays.
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Name(Name),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Array,
    ByteArray,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Pickle {
    heap: Vec<Object>,
    top: Value,
}

impl Pickle {
    pub(super) fn top(&self) -> Value {
        self.top
    }

    pub(super) fn text(&self, value: Value) -> Option<&str> {
        match self.object(value)? {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn list(&self, value: Value) -> Option<&[Value]> {
        match self.object(value)? {
            Object::List(list) => Some(list),
            _ => None,
        }
    }

    /// The value of a key of a dictionary.
    pub(super) fn get(&self, dict: Value, key: &str) -> Option<Value> {
        let Object::Dict(pairs) = self.object(dict)? else { return None };
        pairs.iter().rev().find(|(name, _)| self.text(*name) == Some(key)).map(|(_, value)| *value)
    }

    fn object(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Object(id) => self.heap.get(id as usize),
            _ => None,
        }
    }
}

/// Read a pickle.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle, PickleError> {
    if bytes.len() > MAX_BYTES {
        return Err(PickleError::TooLong(bytes.len()));
    }
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        heap: Vec::new(),
        memo: BTreeMap::new(),
    };
    loop {
        if let Some(top) = machine.step()? {
            return Ok(Pickle { heap: machine.heap, top });
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack where a mark is.
    marks: Vec<usize>,
    heap: Vec<Object>,
    memo: BTreeMap<u32, Value>,
}

impl Machine<'_> {
    /// One operation; the value when it is the last.
    fn step(&mut self) -> Result<Option<Value>, PickleError> {
        let at = self.at;
        let [opcode] = self.take()?;
        match opcode {
            0x80 => {
                let [_protocol] = self.take()?;
            }
            b'.' => return Ok(Some(self.pop()?)),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' | b'M' | b'J' | 0x8a => {
                let number = self.integer(opcode)?;
                self.stack.push(Value::Int(number));
            }
            b'G' => {
                let number = f64::from_be_bytes(self.take()?);
                self.stack.push(Value::Float(number));
            }
            b'X' | b'T' | b'U' => self.text(opcode)?,
            b'}' => self.push(Object::Dict(Vec::new())),
            b']' | b')' => self.push(Object::List(Vec::new())),
            b't' => {
                let items = self.take_to_mark()?;
                self.push(Object::List(items));
            }
            0x85..=0x87 => {
                let length = self
                    .stack
                    .len()
                    .checked_sub(usize::from(opcode - 0x84))
                    .filter(|&length| length >= self.floor());
                let items = self.stack.split_off(length.ok_or(PickleError::Operands(at))?);
                self.push(Object::List(items));
            }
            b'q' | b'r' | b'h' | b'j' => self.memo(opcode)?,
            b'a' | b'e' | b's' | b'u' => self.extend(opcode)?,
            b'c' => self.name()?,
            b'R' => self.call()?,
            opcode => return Err(PickleError::Opcode { at, opcode }),
        }
        Ok(None)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let rest = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk());
        let taken = *rest.ok_or(PickleError::Cut(self.at))?;
        self.at += N;
        Ok(taken)
    }

    fn take_slice(&mut self, length: usize) -> Result<&[u8], PickleError> {
        let end = self.at.checked_add(length).ok_or(PickleError::Cut(self.at))?;
        let taken = self.bytes.get(self.at..end).ok_or(PickleError::Cut(self.at))?;
        self.at = end;
        Ok(taken)
    }

    fn take_line(&mut self) -> Result<&[u8], PickleError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(PickleError::Cut(self.at))?;
        self.at += length + 1;
        Ok(rest.get(..length).unwrap_or_default())
    }

    fn integer(&mut self, opcode: u8) -> Result<i64, PickleError> {
        let at = self.at;
        Ok(match opcode {
            b'K' => i64::from(u8::from_le_bytes(self.take()?)),
            b'M' => i64::from(u16::from_le_bytes(self.take()?)),
            b'J' => i64::from(i32::from_le_bytes(self.take()?)),
            _ => {
                let [length] = self.take()?;
                let digits = self.take_slice(usize::from(length))?;
                if digits.len() > 8 {
                    return Err(PickleError::Operands(at));
                }
                // Two's complement: the sign of the last byte goes on.
                let sign = if digits.last().is_some_and(|byte| byte & 0x80 > 0) { 0xff } else { 0 };
                let mut bytes = [sign; 8];
                bytes.iter_mut().zip(digits).for_each(|(byte, digit)| *byte = *digit);
                i64::from_le_bytes(bytes)
            }
        })
    }

    fn text(&mut self, opcode: u8) -> Result<(), PickleError> {
        let at = self.at;
        let length = match opcode {
            b'U' => u32::from(u8::from_le_bytes(self.take()?)),
            _ => u32::from_le_bytes(self.take()?),
        };
        let text = self.take_slice(length as usize)?;
        let text = std::str::from_utf8(text).map_err(|_| PickleError::Text(at))?.to_owned();
        self.push(Object::Text(text));
        Ok(())
    }

    fn push(&mut self, object: Object) {
        // At most one for each byte of the input.
        self.stack.push(Value::Object(u32::try_from(self.heap.len()).unwrap_or(u32::MAX)));
        self.heap.push(object);
    }

    /// Where the stack may not be popped any further.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        if self.stack.len() <= self.floor() {
            return Err(PickleError::Operands(self.at));
        }
        self.stack.pop().ok_or(PickleError::Operands(self.at))
    }

    fn take_to_mark(&mut self) -> Result<Vec<Value>, PickleError> {
        let mark = self.marks.pop().ok_or(PickleError::Operands(self.at))?;
        Ok(self.stack.split_off(mark))
    }

    fn memo(&mut self, opcode: u8) -> Result<(), PickleError> {
        let slot = match opcode {
            b'q' | b'h' => u32::from(u8::from_le_bytes(self.take()?)),
            _ => u32::from_le_bytes(self.take()?),
        };
        if matches!(opcode, b'q' | b'r') {
            let value = self.pop()?;
            self.stack.push(value);
            self.memo.insert(slot, value);
        } else {
            self.stack.push(*self.memo.get(&slot).ok_or(PickleError::Operands(self.at))?);
        }
        Ok(())
    }

    /// Append to the list, or set in the dictionary, below.
    fn extend(&mut self, opcode: u8) -> Result<(), PickleError> {
        let at = self.at;
        let items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.take_to_mark()?,
        };
        let below = self.pop()?;
        self.stack.push(below);
        let Value::Object(id) = below else { return Err(PickleError::Operands(at)) };
        match (self.heap.get_mut(id as usize), opcode) {
            (Some(Object::List(list)), b'a' | b'e') => list.extend(items),
            (Some(Object::Dict(pairs)), b's' | b'u') if items.len().is_multiple_of(2) => {
                pairs.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err(PickleError::Operands(at)),
        }
        Ok(())
    }

    fn name(&mut self) -> Result<(), PickleError> {
        let at = self.at;
        let module = self.take_line()?.to_owned();
        let name = match (module.as_slice(), self.take_line()?) {
            (b"array", b"array") => Name::Array,
            (b"__builtin__" | b"builtins", b"bytearray") => Name::ByteArray,
            _ => return Err(PickleError::Name(at)),
        };
        self.push(Object::Name(name));
        Ok(())
    }

    /// `array(type, list)` is the list; `bytearray(text, "latin-1")` is the list of its characters.
    fn call(&mut self) -> Result<(), PickleError> {
        let error = PickleError::Operands(self.at);
        let (arguments, name) = (self.pop()?, self.pop()?);
        let object = |value: Value| match value {
            Value::Object(id) => self.heap.get(id as usize),
            _ => None,
        };
        let Some(Object::List(arguments)) = object(arguments) else { return Err(error) };
        let result = match (object(name), arguments.as_slice()) {
            (Some(Object::Name(Name::Array)), [_, list])
                if matches!(object(*list), Some(Object::List(_))) =>
            {
                *list
            }
            (Some(Object::Name(Name::ByteArray)), [text, ..]) => {
                let Some(Object::Text(text)) = object(*text) else { return Err(error) };
                let list =
                    text.chars().map(|character| Value::Int(i64::from(u32::from(character)))).collect();
                self.push(Object::List(list));
                return Ok(());
            }
            _ => return Err(error),
        };
        self.stack.push(result);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_dictionary_has_what_is_set_later() {
        // {"a": [d], "b": d} with d = {"x": -2} that is filled after it was first used.
        let bytes = b"\x80\x02}(X\x01\0\0\0a](}q\x01eX\x01\0\0\0bh\x01X\x01\0\0\0xJ\xfe\xff\xff\xffsu.";
        let pickle = read(bytes).unwrap();
        let in_list = pickle.list(pickle.get(pickle.top(), "a").unwrap()).unwrap()[0];
        assert_eq!(pickle.get(in_list, "x"), Some(Value::Int(-2)));
    }

    #[test]
    fn arrays_are_lists_and_other_names_are_refused() {
        let array = read(b"\x80\x02carray\narray\nX\x01\0\0\0H](K\x01M\x00\x02\x8a\x01\xffe\x86R.").unwrap();
        assert_eq!(array.list(array.top()), Some(&[Value::Int(1), Value::Int(512), Value::Int(-1)][..]));
        let bytes =
            read("\u{80}c__builtin__\nbytearray\nX\x03\0\0\0\u{ff}\x01X\x07\0\0\0latin-1\u{86}R.".as_bytes());
        bytes.unwrap_err();
        assert_eq!(read(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.").unwrap_err(), PickleError::Name(3));
    }

    #[test]
    fn nothing_panics_whatever_is_cut_or_changed() {
        let bytes = b"\x80\x02}q\0(X\x01\0\0\0a]q\x01(K\x01K\x02eX\x01\0\0\0bh\x01X\x01\0\0\0cN\x88\x89K\x01\x85)tsu.";
        for at in 0..bytes.len() {
            let _cut = read(&bytes[..at]);
            for value in 0..=255 {
                let mut changed = bytes.to_vec();
                changed[at] = value;
                let _result = read(&changed);
            }
        }
    }
}
