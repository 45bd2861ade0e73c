//! PyTorch files, zip or the older form: which tensors their pickle names and where the bytes lie. Nothing in a pickle is
//! ever run.

mod machine;

use crate::archive::{TensorEntry, byte_size, check_count, check_rank, other_kind};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_tensor::DType;
use candle_core::Layout;
use machine::{Id, Pickle, Value};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use zip::{CompressionMethod, ZipArchive};

type Zip<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// A pickle larger than this holds more than names and shapes.
const MAX_PICKLE: u64 = 64 << 20;

/// How a file of the older form begins: the pickle of a magic number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The tensors of a bare state dict, or of one under `ema`, `state_dict` or `model`, the first that is there.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, TensorEntry>> {
    if let Some((kind, hint)) = other_kind(bytes) {
        bail!(File, "expected a PyTorch file, got {kind}"; hint: "{hint}");
    }
    if bytes.starts_with(LEGACY) { legacy(bytes) } else { zipped(bytes) }
}

fn zipped(bytes: &[u8]) -> Result<BTreeMap<String, TensorEntry>> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|e| not_zip(&e))?;
    let Some(name) = zip.file_names().flatten().map(|n| n.into_owned()).find(|n| n.ends_with("data.pkl")) else {
        bail!(File, "expected a PyTorch file, got a zip file without `data.pkl`");
    };
    let file = zip.by_name(&name).map_err(|e| not_zip(&e))?;
    if file.size() > MAX_PICKLE {
        bail!(Limit, "expected a pickle of at most {MAX_PICKLE} bytes, got {}", file.size());
    }
    let mut pickle = Vec::new();
    file.take(MAX_PICKLE).read_to_end(&mut pickle).map_err(|e| not_zip(&e))?;
    let folder = name.trim_end_matches(".pkl");
    tensors(&Pickle::read(&pickle)?, |found| stored(&mut zip, &format!("{folder}/{}", found.storage), found))
}

/// Pickles of version, system, state dict and the keys of its storages, then each storage: how many numbers, and they.
fn legacy(bytes: &[u8]) -> Result<BTreeMap<String, TensorEntry>> {
    let (pickles, mut at) = (&bytes[..bytes.len().min(MAX_PICKLE as usize)], LEGACY.len());
    let mut next = || {
        let pickle = Pickle::read(&pickles[at..])?;
        at += pickle.length;
        Ok::<_, Error>(pickle)
    };
    let [_version, _system, dict, keys] = [next()?, next()?, next()?, next()?];
    let Value::List(keys_listed) = keys.get(keys.top) else {
        bail!(File, "expected the keys of its storages, got another object");
    };
    let mut sizes = BTreeMap::new(); // bytes of a number, by storage
    tensors(&dict, |found| {
        sizes.insert(found.storage.clone(), found.dtype.size_in_bytes());
        entry(found, 0, u64::MAX)
    })?;
    let mut places = BTreeMap::new();
    for key in keys_listed {
        let key = keys.text(*key).unwrap_or_default();
        let count = bytes.get(at..at + 8).and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)));
        let size = sizes.get(key).and_then(|size| count?.checked_mul(*size as u64));
        let Some(size) = size.filter(|size| *size <= (bytes.len() - at - 8) as u64) else {
            bail!(File, "storage `{key}` does not lie in the file's {} bytes", bytes.len(); hint: "the file is cut off; fetch it again");
        };
        places.insert(key.to_string(), (at as u64 + 8, size));
        at += 8 + size as usize;
    }
    tensors(&dict, |found| match places.get(&found.storage) {
        Some(&(at, size)) => entry(found, at, size),
        None => bail!(File, "its data is missing"),
    })
}

/// What a pickle says of a tensor.
struct Found {
    dtype: DType,
    layout: Layout,
    /// The name of the storage that holds its numbers.
    storage: String,
}

/// The tensors of a state dict and where `place` finds them.
fn tensors(
    pickle: &Pickle,
    mut place: impl FnMut(&Found) -> Result<TensorEntry>,
) -> Result<BTreeMap<String, TensorEntry>> {
    let mut entries = BTreeMap::new();
    for (key, value) in state_dict(pickle)? {
        let Some(name) = pickle.text(*key) else { continue };
        let found = tensor(pickle, *value).and_then(|found| found.map(|found| place(&found)).transpose());
        if let Some(entry) = found.map_err(|e| e.within(format!("tensor `{name}`")))? {
            entries.insert(name.to_string(), entry);
        }
        check_count(entries.len())?;
    }
    Ok(entries)
}

/// A tensor by the call that would make it again, below the calls that make it a parameter; none where it is something else.
fn tensor(pickle: &Pickle, mut value: Id) -> Result<Option<Found>> {
    let damaged = || Error::new(Kind::File, "what it is made from is not readable");
    for _ in 0..4 {
        let Some((name, arguments)) = pickle.call(value) else { return Ok(None) };
        let arguments = pickle.tuple(arguments).ok_or_else(damaged)?;
        let at = |i: usize| arguments.get(i).copied().ok_or_else(damaged);
        match name {
            "_rebuild_parameter" => value = at(0)?,
            // of a subclass: what makes the plain tensor, the class, its arguments
            "_rebuild_from_type_v2" => return rebuilt(pickle, pickle.tuple(at(2)?).ok_or_else(damaged)?).map(Some),
            // the second is PyTorch's before 0.4, from the same numbers
            "_rebuild_tensor_v2" | "_rebuild_tensor" => return rebuilt(pickle, arguments).map(Some),
            _ => return Ok(None),
        }
    }
    Err(damaged())
}

/// From storage, offset, sizes and strides.
fn rebuilt(pickle: &Pickle, arguments: &[Id]) -> Result<Found> {
    let damaged = || Error::new(Kind::File, "what it is made from is not readable");
    let &[storage, offset, sizes, strides, ..] = arguments else { return Err(damaged()) };
    let Value::Outside(storage) = pickle.get(storage) else { return Err(damaged()) };
    let Some(&[_, class, key, ..]) = pickle.tuple(*storage) else { return Err(damaged()) };
    let (Value::Class(_, class), Some(key)) = (pickle.get(class), pickle.text(key)) else { return Err(damaged()) };
    let Some((_, dtype)) = STORAGES.iter().find(|(name, _)| name == class) else {
        bail!(Dtype, "numbers of a {class} are not read"; hint: "convert the file to bf16 or f32 where it came from");
    };
    let counts = |id| pickle.tuple(id)?.iter().map(|id| pickle.count(*id)).collect::<Option<Vec<usize>>>();
    let (Some(offset), Some(sizes), Some(strides)) = (pickle.count(offset), counts(sizes), counts(strides)) else {
        return Err(damaged());
    };
    check_rank(&sizes)?;
    let start =
        offset.checked_mul(dtype.size_in_bytes()).filter(|_| sizes.len() == strides.len()).ok_or_else(damaged)?;
    byte_size(&sizes, *dtype).ok_or_else(damaged)?;
    Ok(Found { dtype: *dtype, layout: Layout::new(sizes.into(), strides, start), storage: key.to_string() })
}

/// Kinds of storage.
const STORAGES: [(&str, DType); 8] = [
    ("FloatStorage", DType::F32),
    ("DoubleStorage", DType::F64),
    ("HalfStorage", DType::F16),
    ("BFloat16Storage", DType::BF16),
    ("ByteStorage", DType::U8),
    ("ShortStorage", DType::I16),
    ("IntStorage", DType::I32),
    ("LongStorage", DType::I64),
];

fn not_zip(error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::File, format!("not a PyTorch zip file ({error})")).hint(
        "save it with a current torch.save, or convert it to safetensors; a shorter file than published is cut off",
    )
}

fn state_dict<'p>(pickle: &'p Pickle) -> Result<&'p [(Id, Id)]> {
    let Some(items) = pickle.dict(pickle.top) else {
        bail!(File, "expected a state dict, got another object");
    };
    let holds = |items: &[(Id, Id)]| {
        items.iter().any(|(_, value)| pickle.call(*value).is_some_and(|(name, _)| name.starts_with("_rebuild")))
    };
    if holds(items) {
        return Ok(items);
    }
    for wanted in ["ema", "state_dict", "model"] {
        let found = items.iter().find(|(key, _)| pickle.text(*key) == Some(wanted));
        if let Some(inner) = found.and_then(|(_, value)| pickle.dict(*value)).filter(|inner| holds(inner)) {
            return Ok(inner);
        }
    }
    bail!(File, "expected a state dict (bare, or under `ema`, `state_dict` or `model`), got none")
}

/// Where the bytes of a tensor lie in a zip file: PyTorch stores them uncompressed.
fn stored(zip: &mut Zip, path: &str, found: &Found) -> Result<TensorEntry> {
    let data = zip.by_name(path).map_err(|e| Error::new(Kind::File, format!("its data is missing ({e})")))?;
    if data.compression() != CompressionMethod::Stored {
        bail!(File, "its data is compressed"; hint: "save the file again with torch.save");
    }
    match data.data_start() {
        Some(at) => entry(found, at, data.size()),
        None => bail!(File, "its data has no place"),
    }
}

/// A tensor in a storage of `size` bytes that begins at `at`.
fn entry(found: &Found, at: u64, size: u64) -> Result<TensorEntry> {
    let (shape, start) = (found.layout.dims().to_vec(), found.layout.start_offset() as u64);
    let reversed = !found.layout.is_contiguous();
    if reversed && !found.layout.is_fortran_contiguous() {
        bail!(File, "its numbers are not in a row"; hint: "save `tensor.contiguous()`");
    }
    let end = byte_size(&shape, found.dtype).and_then(|bytes| bytes.checked_add(start)).filter(|&end| end <= size);
    match end {
        Some(end) => Ok(TensorEntry { dtype: found.dtype, shape, begin: at + start, end: at + end, reversed }),
        None => bail!(File, "shape {shape:?} needs more than the {size} bytes stored";
            hint: "the file is cut off; fetch it again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(pickle: &[u8]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let stored = zip::write::SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file("archive/data.pkl", stored).unwrap();
        zip.write_all(pickle).unwrap();
        zip.finish().unwrap().into_inner()
    }

    fn refusal(bytes: &[u8]) -> String {
        entries(bytes).unwrap_err().message
    }

    /// `{"w": float32 [2, 2] from number 1 on}` in a storage of five numbers, as torch.save wrote before 1.6.
    fn old(rebuild: &str) -> Vec<u8> {
        let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
        let storage =
            [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", &text("7")[..], &text("cpu")[..], b"K\x05NtQ"]
                .concat();
        let tensor =
            [format!("ctorch._utils\n{rebuild}\n(").as_bytes(), &storage, b"K\x01K\x02K\x02\x86K\x02K\x01\x86tR"]
                .concat();
        let dict = [b"\x80\x02}", &text("w")[..], &tensor, b"s."].concat();
        let keys = [b"\x80\x02](", &text("7")[..], b"e."].concat();
        let numbers: Vec<u8> = (0..5).flat_map(|i| (i as f32).to_le_bytes()).collect();
        [LEGACY, b"\x80\x02M\xe9\x03.", b"\x80\x02}.", &dict, &keys, &5u64.to_le_bytes(), &numbers].concat()
    }

    #[test]
    fn files_of_the_older_form_are_read() {
        for rebuild in ["_rebuild_tensor_v2", "_rebuild_tensor"] {
            let bytes = old(rebuild);
            let entry = entries(&bytes).unwrap().remove("w").unwrap();
            let numbers: Vec<u8> = (1..5).flat_map(|i| (i as f32).to_le_bytes()).collect();
            assert_eq!(
                (&entry.shape[..], &bytes[entry.begin as usize..entry.end as usize]),
                (&[2, 2][..], &numbers[..])
            );
        }
        let mut cut = old("_rebuild_tensor_v2");
        cut.truncate(cut.len() - 2);
        assert!(refusal(&cut).starts_with("storage `7` does not lie in the file"));
        let code = [LEGACY, b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."].concat();
        assert_eq!(refusal(&code), "the pickle calls `os.system`, which is not data");
    }

    #[test]
    fn code_and_other_objects_are_refused() {
        // {"w": os.system("true")}
        let code = b"\x80\x02}X\x01\x00\x00\x00wcos\nsystem\nX\x04\x00\x00\x00true\x85Rs.";
        assert_eq!(refusal(&file(code)), "the pickle calls `os.system`, which is not data");
        assert!(refusal(&file(b"\x80\x02}.")).starts_with("expected a state dict (bare"));
        assert_eq!(refusal(&file(b"\x80\x02]."))[..21], *"expected a state dict");
        assert!(refusal(&file(b"\x80\x02]\xff")).starts_with("the pickle is not readable"));
        assert!(refusal(b"no zip").starts_with("not a PyTorch zip file"));
        let mut cut = file(code);
        cut.truncate(cut.len() - 10);
        assert!(refusal(&cut).starts_with("not a PyTorch zip file"));
    }
}
