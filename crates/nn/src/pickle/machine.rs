//! A pickle as data: the values that its opcodes make, each at a place in one list, so that nothing is copied, nested or run.
//!
//! It is not candle's reader, which allocates what a length claims, copies what is referred to and recurses into what it read: a file of
//! a kilobyte could take all memory.

use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use std::collections::HashMap;

/// Most values of a pickle.
const MOST: usize = 2 << 20;

/// The place of a value in its pickle.
pub type Id = u32;

/// A value; others in it by their places.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Module and name of a function or class.
    Class(&'a str, &'a str),
    Text(&'a str),
    Int(i64),
    Number(f64),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or class with its arguments.
    Call(Id, Id),
    /// What lies outside the pickle, by its description.
    Outside(Id),
    /// Bytes, a frozen set, an integer of more than 64 bits, a truth value, nothing.
    Other,
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle<'a> {
    values: Vec<Value<'a>>,
    /// The place of what it holds.
    pub top: Id,
    /// Bytes that were read.
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads one pickle from the beginning of these bytes.
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut machine = Machine {
            bytes,
            at: 0,
            values: vec![Value::Other],
            held: 0,
            stack: vec![],
            marks: vec![],
            memo: HashMap::new(),
        };
        while machine.step()? {
            if machine.size() > MOST {
                bail!(Limit, "expected a pickle of at most {MOST} values, got more"; hint: "save only the state dict with torch.save");
            }
        }
        let top = machine.pop()?;
        Ok(Self { values: machine.values, top, length: machine.at })
    }

    pub fn get(&self, id: Id) -> &Value<'a> {
        self.values.get(id as usize).unwrap_or(&Value::Other)
    }

    pub fn text(&self, id: Id) -> Option<&'a str> {
        if let Value::Text(text) = self.get(id) { Some(text) } else { None }
    }

    pub fn count(&self, id: Id) -> Option<usize> {
        if let Value::Int(n) = self.get(id) { usize::try_from(*n).ok() } else { None }
    }

    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Value::Tuple(items) = self.get(id) { Some(items) } else { None }
    }

    pub fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        if let Value::Dict(items) = self.get(id) { Some(items) } else { None }
    }

    /// Name and arguments of a call.
    pub fn call(&self, id: Id) -> Option<(&'a str, Id)> {
        match self.get(id) {
            Value::Call(callable, arguments) => match self.get(*callable) {
                Value::Class(_, name) => Some((name, *arguments)),
                _ => None,
            },
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    /// Entries of its lists and dicts.
    held: usize,
    stack: Vec<Id>,
    /// Heights of the stack where marks lie.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

fn damaged(what: &str) -> Error {
    Error::new(Kind::File, format!("the pickle is not readable ({what})"))
        .hint("save only the state dict with torch.save, or convert it to safetensors")
}

impl<'a> Machine<'a> {
    /// How much it holds, in values.
    fn size(&self) -> usize {
        self.values.len() + self.held + self.stack.len() + self.marks.len() + self.memo.len()
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end =
            self.at.checked_add(n).filter(|end| *end <= self.bytes.len()).ok_or_else(|| damaged("it is cut off"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Bytes behind their number, which stands in `n` bytes.
    fn counted(&mut self, n: usize) -> Result<&'a [u8]> {
        let mut count = [0; 8];
        count[..n].copy_from_slice(self.take(n)?);
        self.take(usize::try_from(u64::from_le_bytes(count)).unwrap_or(usize::MAX))
    }

    /// An integer of so many bytes, the smallest first.
    fn integer(&mut self, n: usize) -> Result<i64> {
        let bytes = self.take(n)?;
        let negative = bytes.last().is_some_and(|b| *b > 127) && n > 3;
        let mut out = [if negative { 255 } else { 0 }; 8];
        match out.get_mut(..n) {
            Some(low) => low.copy_from_slice(bytes),
            None => return Err(damaged("an integer of more than 64 bits")),
        }
        Ok(i64::from_le_bytes(out))
    }

    fn line(&mut self) -> Result<&'a str> {
        let end = self.bytes[self.at..].iter().position(|b| *b == b'\n').ok_or_else(|| damaged("it is cut off"))?;
        let line = self.take(end + 1)?;
        text(&line[..end])
    }

    fn push(&mut self, value: Value<'a>) {
        let id = if value == Value::Other { 0 } else { self.values.len() as Id };
        if id > 0 {
            self.values.push(value);
        }
        self.stack.push(id);
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(damaged("a value is missing"));
        }
        self.stack.pop().ok_or_else(|| damaged("a value is missing"))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| damaged("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    /// The value on top, which others are put into.
    fn top(&mut self) -> Result<&mut Value<'a>> {
        let id = self.stack.last().copied().ok_or_else(|| damaged("a value is missing"))?;
        self.values.get_mut(id as usize).ok_or_else(|| damaged("a value is missing"))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        self.held += items.len();
        match self.top()? {
            Value::List(list) => list.extend(items),
            _ => return Err(damaged("a list is missing")),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        self.held += items.len() / 2;
        match self.top()? {
            Value::Dict(dict) if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks(2).map(|pair| (pair[0], pair[1])))
            }
            _ => return Err(damaged("a dict is missing")),
        }
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let dict = matches!(self.values.get(callable as usize), Some(Value::Class("collections" | "argparse", _)));
        self.push(if dict { Value::Dict(vec![]) } else { Value::Call(callable, arguments) });
        Ok(())
    }

    /// Attributes of a value: of a dict they are entries, of others they are not looked at.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        if !matches!(self.top()?, Value::Dict(_)) {
            return Ok(());
        }
        let more = match self.values.get(state as usize) {
            Some(Value::Dict(more)) => more.clone(),
            _ => return Ok(()),
        };
        self.held += more.len();
        if let Value::Dict(dict) = self.top()? {
            dict.extend(more);
        }
        Ok(())
    }

    fn tuple(&mut self, n: usize) -> Result<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    /// Of a class named by the two texts on top.
    fn class(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match [module, name].map(|id| self.values.get(id as usize)) {
            [Some(Value::Text(module)), Some(Value::Text(name))] => {
                let class = class(module, name)?;
                self.push(class);
                Ok(())
            }
            _ => Err(damaged("the name of a class is missing")),
        }
    }

    fn remember(&mut self, key: i64) -> Result<()> {
        let id = self.stack.last().copied().ok_or_else(|| damaged("a value is missing"))?;
        self.memo.insert(key as u32, id);
        Ok(())
    }

    fn recall(&mut self, key: i64) -> Result<()> {
        let id = self.memo.get(&(key as u32)).copied().ok_or_else(|| damaged("a value is missing"))?;
        self.stack.push(id);
        Ok(())
    }

    /// One opcode of protocols 2 to 5, as `torch.save` writes them; false at the end.
    fn step(&mut self) -> Result<bool> {
        match self.take(1)?[0] {
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?), // how long a frame is
            b'.' => return Ok(false),
            b'(' => self.marks.push(self.stack.len()),
            op @ 0x85..=0x87 => self.tuple(usize::from(op - 0x84))?,
            op @ (b't' | b'd' | b'e' | b'u' | 0x90 | 0x91) => self.collect(op)?,
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'R' | 0x81 => self.call()?,
            0x92 => {
                self.pop()?; // arguments by name
                self.call()?;
            }
            0x93 => self.class()?,
            0x94 => self.remember(self.memo.len() as i64)?,
            b'b' => self.build()?,
            b'Q' => {
                let what = self.pop()?;
                self.push(Value::Outside(what));
            }
            op @ (b'q' | b'r') => {
                let key = self.integer(if op == b'q' { 1 } else { 4 })?;
                self.remember(key)?;
            }
            op @ (b'h' | b'j') => {
                let key = self.integer(if op == b'h' { 1 } else { 4 })?;
                self.recall(key)?;
            }
            op => {
                let value = self.value(op)?;
                self.push(value);
            }
        }
        Ok(true)
    }

    /// A value that an opcode makes of what stands behind it.
    fn value(&mut self, op: u8) -> Result<Value<'a>> {
        Ok(match op {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                class(module, name)?
            }
            b'X' => Value::Text(text(self.counted(4)?)?),
            0x8c => Value::Text(text(self.counted(1)?)?),
            0x8d => Value::Text(text(self.counted(8)?)?),
            b'C' | b'B' | 0x8e | 0x96 => {
                self.counted(match op {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                })?;
                Value::Other
            }
            b'K' => Value::Int(self.integer(1)?),
            b'M' => Value::Int(self.integer(2)?),
            b'J' => Value::Int(self.integer(4)?),
            0x8a => match self.take(1)?[0] {
                length @ 0..=8 => Value::Int(self.integer(length.into())?),
                length => {
                    self.take(length.into())?;
                    Value::Other
                }
            },
            b'G' => {
                let bytes = self.take(8)?.try_into().map_err(|_| damaged("it is cut off"))?;
                Value::Number(f64::from_be_bytes(bytes))
            }
            b'N' | 0x88 | 0x89 => Value::Other,
            b')' => Value::Tuple(vec![]),
            b']' | 0x8f => Value::List(vec![]), // 0x8f: a set
            b'}' => Value::Dict(vec![]),
            other => return Err(damaged(&format!("opcode {other:#04x} is not known"))),
        })
    }

    /// What lies above the last mark, as a tuple, a dict, a frozen set, or in the list, set or dict below it.
    fn collect(&mut self, op: u8) -> Result<()> {
        let items = self.pop_to_mark()?;
        match op {
            b't' => self.push(Value::Tuple(items)),
            b'e' | 0x90 => self.append(items)?,
            0x91 => self.push(Value::Other),
            b'u' => self.set(&items)?,
            _ => {
                self.push(Value::Dict(vec![]));
                self.set(&items)?;
            }
        }
        Ok(())
    }
}

/// A class of data.
fn class<'a>(module: &'a str, name: &'a str) -> Result<Value<'a>> {
    if !is_data(module, name) {
        bail!(File, "the pickle calls `{module}.{name}`, which is not data";
            hint: "do not trust the file; convert it to safetensors where it came from");
    }
    Ok(Value::Class(module, name))
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| damaged("a text is not UTF-8"))
}

/// What data is made of; anything else would be code if the pickle were run.
fn is_data(module: &str, class: &str) -> bool {
    const NUMBERS: [&str; 5] = ["float", "bfloat", "int", "uint", "complex"];
    match module {
        "collections" => matches!(class, "OrderedDict" | "defaultdict" | "Counter"),
        "builtins" | "__builtin__" => {
            matches!(class, "set" | "frozenset" | "complex" | "bytearray" | "list" | "dict" | "int" | "float")
        }
        "torch" => {
            class.ends_with("Storage")
                || matches!(class, "Size" | "device" | "bool" | "half" | "double")
                || NUMBERS.iter().any(|kind| class.starts_with(kind))
        }
        "torch.storage" => matches!(class, "UntypedStorage" | "TypedStorage"),
        "torch._utils" => class.starts_with("_rebuild_"),
        "torch._tensor" => class == "_rebuild_from_type_v2",
        "torch.nn.parameter" => class == "Parameter",
        "argparse" => class == "Namespace",
        "pathlib" => class.ends_with("Path"),
        "numpy" => matches!(class, "dtype" | "ndarray"),
        "numpy.core.multiarray" | "numpy._core.multiarray" => matches!(class, "scalar" | "_reconstruct"),
        "_codecs" => class == "encode",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        Pickle::read(bytes).unwrap_err().message
    }

    #[test]
    fn small_pickles_that_would_grow_are_read_in_no_room() {
        // ten references each to the list before, thirty deep
        let mut laughs = b"\x80\x02]q\x00".to_vec();
        for i in 0..30u8 {
            laughs.extend(b"](");
            laughs.extend([b'h', i].repeat(10));
            laughs.extend([b'e', b'q', i + 1]);
        }
        laughs.push(b'.');
        assert!(Pickle::read(&laughs).unwrap().values.len() < 100);
        assert_eq!(refusal(b"\x80\x02X\xff\xff\xff\xff."), "the pickle is not readable (it is cut off)");
        let nested = [vec![b']'; 300_000], vec![b'a'; 299_999], vec![b'.']].concat();
        assert!(Pickle::read(&nested).is_ok());
        assert_eq!(Pickle::read(&vec![b']'; 4 << 20]).unwrap_err().kind, Kind::Limit);
        assert_eq!(Pickle::read(&vec![b'('; 4 << 20]).unwrap_err().kind, Kind::Limit);
        // a dict that is given its own entries, forty times
        let twice = [&b"}q\x00X\x01\x00\x00\x00aNs"[..], &b"h\x00b".repeat(40), b"."].concat();
        assert_eq!(Pickle::read(&twice).unwrap_err().kind, Kind::Limit);
        let mut names = b"]".to_vec();
        (0..3u32 << 20).for_each(|i| names.extend([&b"r"[..], &i.to_le_bytes()].concat()));
        assert_eq!(Pickle::read(&names).unwrap_err().kind, Kind::Limit);
    }

    #[test]
    fn damage_is_an_error() {
        for bytes in
            [&b""[..], b".", b"a.", b"]a.", b"N(Na.", b"t.", b"h\x00.", b"}(Nu.", b"X\x01\0\0\0\xff.", b"co\n", b"\xff"]
        {
            assert!(refusal(bytes).starts_with("the pickle is not readable"), "{bytes:?}");
        }
        for bytes in [
            &b"\x93."[..],
            b"NN\x93.",
            b"\x94.",
            b"N\x90.",
            b"(N\x90.",
            b"\x91.",
            b"N\x92.",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        ] {
            assert!(refusal(bytes).starts_with("the pickle is not readable"), "{bytes:?}");
        }
        let read = Pickle::read(b"(K\x01M\x00\x01J\xff\xff\xff\xff\x8a\x01\x05t.").unwrap();
        let items = read.tuple(read.top).unwrap();
        let numbers: Vec<&Value> = items.iter().map(|id| read.get(*id)).collect();
        assert_eq!(numbers, [&Value::Int(1), &Value::Int(256), &Value::Int(-1), &Value::Int(5)]);
    }

    #[test]
    fn later_protocols_are_read() {
        // {"a": {1}, "b": frozenset([1]), "c": b"x", "d": 2**70, "e": 0.5} and a class by its name on the stack
        let bytes = b"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94\x8f\x94(K\x01\x90\x8c\x01b(K\x01\x91\x8c\x01cC\x01x\x8c\x01d\x8a\x09123456789\x8c\x01eG\x3f\xe0\0\0\0\0\0\0\x8c\x01f\x8c\x0bcollections\x8c\x07Counter\x93)Ru.";
        let read = Pickle::read(bytes).unwrap();
        let items = read.dict(read.top).unwrap();
        let names: Vec<_> = items.iter().filter_map(|(key, _)| read.text(*key)).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e", "f"]);
        assert_eq!(read.get(items[4].1), &Value::Number(0.5));
        assert_eq!((read.get(items[3].1), read.get(items[5].1)), (&Value::Other, &Value::Dict(vec![])));
        let code = refusal(b"\x8c\x02os\x8c\x06system\x93.");
        assert_eq!(code, "the pickle calls `os.system`, which is not data");
        let set = Pickle::read(b"c__builtin__\nset\n](K\x01e\x85R.").unwrap();
        assert!(set.call(set.top).is_some_and(|(name, _)| name == "set"));
        let mut names = b"N".to_vec();
        names.extend(vec![0x94; 4 << 20]);
        assert_eq!(Pickle::read(&names).unwrap_err().kind, Kind::Limit);
    }
}
