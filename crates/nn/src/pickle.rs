//! PyTorch files, zip or the older form: which tensors their pickle names and where the bytes lie. Nothing in a pickle is
//! ever run.

use crate::archive::{TensorEntry, byte_size, check_count};
use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use candle_core::pickle::{Object, Stack, TensorInfo};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;
use zip::{CompressionMethod, ZipArchive};

type Zip<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// A pickle larger than this holds more than names and shapes.
const MAX_PICKLE: u64 = 64 << 20;

/// How a file of the older form begins: the pickle of a magic number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The tensors of a bare state dict, or of one under `ema`, `state_dict` or `model`, the first that is there.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, TensorEntry>> {
    let entries = if bytes.starts_with(LEGACY) { legacy(bytes)? } else { zipped(bytes)? };
    check_count(entries.len())?;
    Ok(entries)
}

fn zipped(bytes: &[u8]) -> Result<BTreeMap<String, TensorEntry>> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|e| not_zip(&e))?;
    let Some(name) = zip.file_names().flatten().map(|n| n.into_owned()).find(|n| n.ends_with("data.pkl")) else {
        bail!(File, "expected a PyTorch file, got a zip file without `data.pkl`");
    };
    let pickle = zip.by_name(&name).map_err(|e| not_zip(&e))?;
    if pickle.size() > MAX_PICKLE {
        bail!(Limit, "expected a pickle of at most {MAX_PICKLE} bytes, got {}", pickle.size());
    }
    let object = object(&mut BufReader::new(pickle.take(MAX_PICKLE)))?;
    tensors(object, name.trim_end_matches(".pkl"), |info| stored(&mut zip, info))
}

/// Pickles of version, system, state dict and the keys of its storages, then each storage: how many numbers, and they.
fn legacy(bytes: &[u8]) -> Result<BTreeMap<String, TensorEntry>> {
    let mut pickles = Cursor::new(&bytes[LEGACY.len()..bytes.len().min(MAX_PICKLE as usize)]);
    let (_version, _system) = (object(&mut pickles)?, object(&mut pickles)?);
    let (dict, keys) = (object(&mut pickles)?, object(&mut pickles)?);
    let start = LEGACY.len() + pickles.position() as usize;
    let Object::List(keys) = keys else {
        bail!(File, "expected the keys of its storages, got another object");
    };
    let mut sizes = BTreeMap::new(); // bytes of a number, by storage
    tensors(dict.clone(), "", |info| {
        sizes.insert(info.path.clone(), info.dtype.size_in_bytes());
        entry(info, 0, u64::MAX)
    })?;
    let (mut places, mut at) = (BTreeMap::new(), start);
    for key in keys {
        let path = format!("/{}", key.unicode().unwrap_or_default());
        let count = bytes.get(at..at + 8).and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)));
        let size = sizes.get(&path).and_then(|size| count?.checked_mul(*size as u64));
        let Some(size) = size.filter(|size| *size <= (bytes.len() - at - 8) as u64) else {
            bail!(File, "storage `{path}` does not lie in the file's {} bytes", bytes.len(); hint: "the file is cut off; fetch it again");
        };
        places.insert(path, (at as u64 + 8, size));
        at += 8 + size as usize;
    }
    tensors(dict, "", |info| match places.get(&info.path) {
        Some(&(at, size)) => entry(info, at, size),
        None => bail!(File, "its data is missing"),
    })
}

/// One pickle as data.
fn object(pickle: &mut impl BufRead) -> Result<Object> {
    let unreadable = |e: candle_core::Error| {
        Error::new(Kind::File, format!("the pickle is not readable ({e})"))
            .hint("save only the state dict with torch.save, or convert it to safetensors")
    };
    let mut stack = Stack::empty();
    stack.read_loop(pickle).map_err(unreadable)?;
    let object = stack.finalize().map_err(unreadable)?;
    refuse_code(&object)?;
    Ok(object)
}

/// The tensors of a state dict and where `place` finds them; the data of each is named after `folder`.
fn tensors(
    object: Object,
    folder: &str,
    mut place: impl FnMut(&TensorInfo) -> Result<TensorEntry>,
) -> Result<BTreeMap<String, TensorEntry>> {
    let mut entries = BTreeMap::new();
    for (key, value) in state_dict(object)? {
        let name = key.clone().unicode().unwrap_or_default();
        let unreadable = |e| Error::new(Kind::File, format!("tensor `{name}`: {e}"));
        if let Some(info) = current(value).into_tensor_info(key, Path::new(folder)).map_err(unreadable)? {
            let entry = place(&info).map_err(|e| e.within(format!("tensor `{}`", info.name)))?;
            entries.insert(info.name, entry);
        }
    }
    Ok(entries)
}

/// PyTorch before 0.4 rebuilt tensors by a function of another name from the same four numbers.
fn current(value: Object) -> Object {
    match value {
        Object::Reduce { callable, args } => match *callable {
            Object::Class { module_name, class_name } if class_name == "_rebuild_tensor" => {
                let callable = Object::Class { module_name, class_name: "_rebuild_tensor_v2".into() };
                Object::Reduce { callable: Box::new(callable), args }
            }
            callable => Object::Reduce { callable: Box::new(callable), args },
        },
        other => other,
    }
}

fn not_zip(error: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::File, format!("not a PyTorch zip file ({error})")).hint(
        "save it with a current torch.save, or convert it to safetensors; a shorter file than published is cut off",
    )
}

fn is_tensor(value: &Object) -> bool {
    matches!(value, Object::Reduce { callable, .. } if matches!(&**callable, Object::Class { class_name, .. } if class_name.starts_with("_rebuild")))
}

fn state_dict(object: Object) -> Result<Vec<(Object, Object)>> {
    let Object::Dict(mut items) = object else {
        bail!(File, "expected a state dict, got another object");
    };
    if items.iter().any(|(_, value)| is_tensor(value)) {
        return Ok(items);
    }
    for wanted in ["ema", "state_dict", "model"] {
        let found = items.iter().position(|(key, _)| matches!(key, Object::Unicode(key) if key == wanted));
        if let Some(Object::Dict(inner)) = found.map(|i| items.swap_remove(i).1)
            && inner.iter().any(|(_, value)| is_tensor(value))
        {
            return Ok(inner);
        }
    }
    bail!(File, "expected a state dict (bare, or under `ema`, `state_dict` or `model`), got none")
}

/// Where the bytes of a tensor lie in a zip file: PyTorch stores them uncompressed.
fn stored(zip: &mut Zip, info: &TensorInfo) -> Result<TensorEntry> {
    let data = zip.by_name(&info.path).map_err(|e| Error::new(Kind::File, format!("its data is missing ({e})")))?;
    if data.compression() != CompressionMethod::Stored {
        bail!(File, "its data is compressed"; hint: "save the file again with torch.save");
    }
    match data.data_start() {
        Some(at) => entry(info, at, data.size()),
        None => bail!(File, "its data has no place"),
    }
}

/// A tensor in a storage of `size` bytes that begins at `at`.
fn entry(info: &TensorInfo, at: u64, size: u64) -> Result<TensorEntry> {
    let (shape, start) = (info.layout.dims().to_vec(), info.layout.start_offset() as u64);
    let reversed = !info.layout.is_contiguous();
    if reversed && !info.layout.is_fortran_contiguous() {
        bail!(File, "its numbers are not in a row"; hint: "save `tensor.contiguous()`");
    }
    let end = byte_size(&shape, info.dtype).and_then(|bytes| bytes.checked_add(start)).filter(|&end| end <= size);
    match end {
        Some(end) => Ok(TensorEntry { dtype: info.dtype, shape, begin: at + start, end: at + end, reversed }),
        None => bail!(File, "shape {shape:?} needs more than the {size} bytes stored";
            hint: "the file is cut off; fetch it again"),
    }
}

/// What data is made of; anything else would be code if the pickle were run.
fn is_data(module: &str, class: &str) -> bool {
    match module {
        "collections" => matches!(class, "OrderedDict" | "defaultdict"),
        "torch" => class.ends_with("Storage") || matches!(class, "Size" | "device") || class.starts_with("float"),
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

fn refuse_code(object: &Object) -> Result<()> {
    match object {
        Object::Class { module_name, class_name } if !is_data(module_name, class_name) => {
            bail!(File, "the pickle calls `{module_name}.{class_name}`, which is not data";
                hint: "do not trust the file; convert it to safetensors where it came from")
        }
        Object::Tuple(items) | Object::List(items) => items.iter().try_for_each(refuse_code),
        Object::Dict(items) => items.iter().try_for_each(|(k, v)| refuse_code(k).and_then(|()| refuse_code(v))),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            refuse_code(callable).and_then(|()| refuse_code(args))
        }
        Object::PersistentLoad(inner) => refuse_code(inner),
        _ => Ok(()),
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
        assert!(refusal(&cut).starts_with("storage `/7` does not lie in the file"));
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
