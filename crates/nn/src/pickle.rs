//! PyTorch files, zip or the older form: which tensors their pickle names and where the bytes lie. Nothing in a pickle is
//! ever run.

mod contents;
mod machine;

use crate::archive::{Header, TensorEntry, byte_size, check_count, check_rank, other_kind};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result, warn_once};
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

/// The tensors of a state dict, and numbers and short texts beside them; `origin` names the file in warnings.
pub(super) fn entries(bytes: &[u8], origin: &str) -> Result<Header> {
    if let Some((kind, hint)) = other_kind(bytes) {
        bail!(File, "expected a PyTorch file, got {kind}"; hint: "{hint}");
    }
    if bytes.starts_with(LEGACY) { legacy(bytes, origin) } else { zipped(bytes, origin) }
}

fn zipped(bytes: &[u8], origin: &str) -> Result<Header> {
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
    header(&Pickle::read(&pickle)?, origin, |found| stored(&mut zip, &format!("{folder}/{}", found.storage), found))
}

/// Pickles of version, system, state dict and the keys of its storages, then each storage: how many numbers, and they.
fn legacy(bytes: &[u8], origin: &str) -> Result<Header> {
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
    header(&dict, origin, |found| {
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
    header(&dict, origin, |found| match places.get(&found.storage) {
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

/// The tensors of the state dict and where `place` finds them, and what stands beside them.
fn header(pickle: &Pickle, origin: &str, mut place: impl FnMut(&Found) -> Result<TensorEntry>) -> Result<Header> {
    let (dict, told) = contents::state_dict(pickle)?;
    if let Some(told) = told {
        let message = format!("{origin}: {told}");
        warn_once(&message, &message);
    }
    let mut entries = BTreeMap::new();
    for (key, value) in dict {
        let Some(name) = pickle.text(*key) else { continue };
        let found = tensor(pickle, *value).and_then(|found| found.map(|found| place(&found)).transpose());
        if let Some(entry) = found.map_err(|e| e.within(format!("tensor `{name}`")))? {
            entries.insert(name.to_string(), entry);
        }
        check_count(entries.len())?;
    }
    Ok((entries, contents::beside(pickle)))
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
            "_rebuild_from_type_v2" => {
                return rebuilt(pickle, pickle.tuple(at(2)?).ok_or_else(damaged)?, None).map(Some);
            }
            // the second is PyTorch's before 0.4, from the same numbers
            "_rebuild_tensor_v2" | "_rebuild_tensor" => return rebuilt(pickle, arguments, None).map(Some),
            // of a storage without a type
            "_rebuild_tensor_v3" => return rebuilt(pickle, arguments, Some(at(6)?)).map(Some),
            _ => return Ok(None),
        }
    }
    Err(damaged())
}

/// From storage, offset, sizes and strides, of the storage's type or of this one.
fn rebuilt(pickle: &Pickle, arguments: &[Id], dtype: Option<Id>) -> Result<Found> {
    let damaged = || Error::new(Kind::File, "what it is made from is not readable");
    let &[storage, offset, sizes, strides, ..] = arguments else { return Err(damaged()) };
    let Value::Outside(storage) = pickle.get(storage) else { return Err(damaged()) };
    let Some(&[_, class, key, ..]) = pickle.tuple(*storage) else { return Err(damaged()) };
    let (Value::Class(_, class), Some(key)) = (pickle.get(dtype.unwrap_or(class)), pickle.text(key)) else {
        return Err(damaged());
    };
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

/// Kinds of storage, and types where the storage has none.
const STORAGES: [(&str, DType); 11] = [
    ("FloatStorage", DType::F32),
    ("DoubleStorage", DType::F64),
    ("HalfStorage", DType::F16),
    ("BFloat16Storage", DType::BF16),
    ("ByteStorage", DType::U8),
    ("ShortStorage", DType::I16),
    ("IntStorage", DType::I32),
    ("LongStorage", DType::I64),
    ("BoolStorage", DType::U8),
    ("float8_e4m3fn", DType::F8E4M3),
    ("uint32", DType::U32),
];

fn not_zip(error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::File, format!("not a PyTorch zip file ({error})")).hint(
        "save it with a current torch.save, or convert it to safetensors; a shorter file than published is cut off",
    )
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
        for (name, bytes) in [("archive/data.pkl", pickle), ("archive/data/0", &[0x38; 16])] {
            zip.start_file(name, stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn refusal(bytes: &[u8]) -> String {
        entries(bytes, "F").unwrap_err().message
    }

    fn text(s: &str) -> Vec<u8> {
        [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
    }

    fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
        [b"}(", &items[..], b"u"].concat()
    }

    /// Two numbers of a kind of storage, or of a type in one without.
    fn tensor(kind: &str, dtype: &str) -> Vec<u8> {
        let (storage, key, place) = (text("storage"), text("0"), text("cpu"));
        let storage = [b"(", &storage[..], b"ctorch\n", kind.as_bytes(), b"\n", &key, &place, b"K\x02tQ"].concat();
        let (version, dtype) = if dtype.is_empty() { (2, String::new()) } else { (3, format!("ctorch\n{dtype}\n")) };
        let call = format!("ctorch._utils\n_rebuild_tensor_v{version}\n(");
        [call.as_bytes(), &storage, b"K\x00K\x02\x85K\x01\x85\x89N", dtype.as_bytes(), b"tR"].concat()
    }

    fn read(pickle: &[u8]) -> Result<Header> {
        entries(&file(&[pickle, b"."].concat()), "F")
    }

    /// `{name: two numbers}`
    fn state(name: &str) -> Vec<u8> {
        dict(&[(name, tensor("FloatStorage", ""))])
    }

    /// `{"w": float32 [2, 2] from number 1 on}` in a storage of five numbers, as torch.save wrote before 1.6.
    fn old(rebuild: &str) -> Vec<u8> {
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
            let entry = entries(&bytes, "F").unwrap().0.remove("w").unwrap();
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

    #[test]
    fn the_averages_are_taken_before_the_plain_weights() {
        let names = |pickle: &[u8]| read(pickle).unwrap().0.into_keys().collect::<Vec<_>>().join(" ");
        let (plain, average) = (state("plain"), state("average"));
        for name in [
            "ema",
            "model_ema",
            "ema_model",
            "state_dict_ema",
            "ema_state_dict",
            "ema1",
            "model_ema2",
            "ema_0.9999",
            "avg_model",
            "averaged-weights",
            "swa",
        ] {
            assert_eq!(names(&dict(&[("model", plain.clone()), (name, average.clone())])), "average", "{name}");
        }
        for inside in ["shadow", "module", "anything"] {
            let ema = dict(&[("decay", b"G\x3f\xe0\0\0\0\0\0\0".to_vec()), (inside, average.clone())]);
            assert_eq!(names(&dict(&[("ema", ema), ("model", plain.clone())])), "average", "{inside}");
        }
        let list = dict(&[("shadow_params", [b"](", &tensor("FloatStorage", "")[..], b"e"].concat())]);
        let nameless = [dict(&[("model", plain.clone()), ("ema", list)]), b".".to_vec()].concat();
        let told = |pickle: &[u8]| contents::state_dict(&Pickle::read(pickle).unwrap()).unwrap().1.unwrap_or_default();
        assert!(told(&nameless).starts_with("its averages `ema` (EMA) have no names"));
        let several = [("model", plain.clone()), ("ema_0.9", average.clone()), ("ema_0.99", state("slower"))];
        let several = [dict(&several), b".".to_vec()].concat();
        assert_eq!(told(&several), "of its averages (EMA), `ema_0.9` is read, not `ema_0.99`");
        let tensor = tensor("FloatStorage", "");
        let flat = [dict(&[("n_averaged", tensor.clone()), ("ema_model.w", tensor)]), b".".to_vec()].concat();
        assert_eq!(told(&flat), "");
        assert_eq!(names(&dict(&[("model", plain.clone()), ("exp_avg", average)])), "plain");
        assert_eq!(names(&dict(&[("model", plain), ("ema", b"G\x3f\xe0\0\0\0\0\0\0".to_vec())])), "plain");
    }

    #[test]
    fn the_only_state_dict_is_found() {
        let names = |pickle: &[u8]| read(pickle).map(|(entries, _)| entries.into_keys().collect::<Vec<_>>().join(" "));
        let plain = state("w");
        for name in ["module", "model_state_dict", "params", "generator"] {
            assert_eq!(names(&dict(&[("step", b"K\x03".to_vec()), (name, plain.clone())])).unwrap(), "w", "{name}");
        }
        assert_eq!(names(&dict(&[("state_dict", dict(&[("model", plain.clone())]))])).unwrap(), "w");
        assert_eq!(names(&dict(&[("rng_state", tensor("ByteStorage", "")), ("model", plain.clone())])).unwrap(), "w");
        let two = names(&dict(&[("generator", plain.clone()), ("critic", plain)])).unwrap_err();
        assert_eq!(two.message, "expected one state dict, got 2 of them among `generator`, `critic`");
        let none = names(&dict(&[("epoch", b"K\x03".to_vec()), ("config", b"}".to_vec())])).unwrap_err();
        assert!(none.message.ends_with("or another name), got `epoch`, `config`"), "{none}");
    }

    #[test]
    fn what_stands_beside_the_tensors_is_told() {
        let half = b"G\x3f\xe0\0\0\0\0\0\0".to_vec();
        let config = dict(&[("lora", dict(&[("alpha", half)])), ("name", text("x")), ("none", b"N".to_vec())]);
        let (_, beside) =
            read(&dict(&[("state_dict", state("w")), ("alpha", b"K\x10".to_vec()), ("config", config)])).unwrap();
        assert_eq!(beside["alpha"], "16");
        assert_eq!(beside["config"], r#"{"lora":{"alpha":0.5},"name":"x"}"#);
        assert_eq!(beside.len(), 2);
        // a dict in which one stands so often that to look into each would take for ever
        let many: Vec<u8> = (0..20_000u32).flat_map(|i| [&text(&i.to_string())[..], b"h\x00"].concat()).collect();
        let numbers: Vec<u8> = (0..20_000u32).flat_map(|i| [&text(&i.to_string())[..], b"N"].concat()).collect();
        let bomb = [text("a"), [b"}(", &numbers[..], b"uq\x00"].concat(), many].concat();
        assert!(refusal(&file(&[b"}(", &bomb[..], b"u."].concat())).starts_with("expected a state dict (bare"));
    }

    #[test]
    fn types_without_a_storage_and_truth_values_are_read() {
        for (kind, dtype, expected) in [
            ("BoolStorage", "", DType::U8),
            ("UntypedStorage", "float8_e4m3fn", DType::F8E4M3),
            ("UntypedStorage", "uint32", DType::U32),
        ] {
            let (entries, _) = read(&dict(&[("w", tensor(kind, dtype))])).unwrap();
            assert_eq!(entries["w"].dtype, expected);
        }
        let refused = read(&dict(&[("w", tensor("UntypedStorage", "float8_e5m2"))])).unwrap_err();
        assert_eq!(refused.message, "tensor `w`: numbers of a float8_e5m2 are not read");
    }
}
