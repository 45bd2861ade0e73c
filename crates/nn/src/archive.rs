//! Files of named tensors, opened by their headers: safetensors (also embedded ones) and PyTorch zip files.
//!
//! Files are mapped, not read. Sizes, names and offsets are checked against the file before memory is spent on a tensor.

use crate::pickle;
use amscript_base::bail;
use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::file::{self, Draft};
use amscript_base::progress::{self, Progress};
use amscript_base::{input, memory};
use amscript_tensor::array::MOST_RANK;
use amscript_tensor::{Array, DType, Device, Tensor};
use memmap2::Mmap;
use serde::{Deserialize, de};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

const MAX_HEADER: u64 = 16 << 20;
const MAX_TENSORS: usize = 20_000;

/// Type, shape and place of a stored tensor.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub(super) begin: u64,
    pub(super) end: u64,
    /// The last dimension varies slowest.
    pub(super) reversed: bool,
}

enum Body {
    File(Mmap),
    Embedded(&'static [u8]),
}

impl Body {
    /// Gives the pages of a tensor that was copied back to the system.
    fn release(&self, entry: &TensorEntry) {
        #[cfg(unix)]
        if let Self::File(map) = self {
            let (start, len) = (entry.begin as usize, (entry.end - entry.begin) as usize);
            // SAFETY: the mapping is of a file and read-only; pages come back from the file when they are touched again.
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) }.ok();
        }
    }
}

/// One open file of tensors; tensors are read when asked for.
pub struct Archive {
    origin: String,
    body: Body,
    entries: BTreeMap<String, TensorEntry>,
    metadata: BTreeMap<String, String>,
}

impl Archive {
    /// Opens a safetensors file, or a PyTorch zip file when the name ends in `.pt`, `.pth`, `.bin` or `.ckpt`.
    pub fn open(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        let refused = |e: std::io::Error| Error::new(Kind::File, format!("{origin}: {e}"));
        let file = file::open(path).map_err(refused)?;
        input::note(path).map_err(refused)?;
        if file.metadata().map_err(refused)?.len() == 0 {
            bail!(File, "{origin}: expected a file of tensors, got 0 bytes");
        }
        // SAFETY: weight files are not changed while they are open; one that is cut short meanwhile ends the process.
        let map = unsafe { Mmap::map(&file) }.map_err(refused)?;
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let parsed = match extension {
            "pt" | "pth" | "bin" | "ckpt" => pickle::entries(&map, &origin),
            _ => safetensors_entries(&map),
        };
        let (entries, metadata) = parsed.map_err(|e| e.within(&origin))?;
        Ok(Self { origin, body: Body::File(map), entries, metadata })
    }

    /// Opens safetensors bytes that live in the binary.
    pub fn embedded(origin: &str, bytes: &'static [u8]) -> Result<Self> {
        let (entries, metadata) = safetensors_entries(bytes).map_err(|e| e.within(origin))?;
        Ok(Self { origin: origin.to_string(), body: Body::Embedded(bytes), entries, metadata })
    }

    /// The file, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    /// The texts that a header carries beside its tensors, and numbers that a PyTorch file does.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads one tensor, in its stored type, into host memory; numbers of 8 bits become f32.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let rows = self.entry(name)?.shape.first().copied().unwrap_or(1);
        self.read_rows(name, 0..rows)
    }

    /// Reads rows of one tensor, as [`Archive::read`] does.
    pub fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let bytes = self.bytes(entry);
        let tensor = |bytes: &[u8], shape: &[usize]| {
            let size = if entry.dtype == DType::F8E4M3 { 4 } else { entry.dtype.size_in_bytes() };
            memory::room(memory::bytes(shape, size), || format!("{}: tensor `{name}`", self.origin))?;
            let tensor = match entry.dtype {
                DType::F8E4M3 => Tensor::from_vec(bytes.iter().map(|b| e4m3(*b)).collect(), shape, &Device::Cpu),
                dtype => Ok(Array::from_raw_buffer(bytes, dtype, shape, &Device::Cpu).map(Tensor::from)?),
            };
            self.body.release(entry);
            tensor
        };
        let Some((&count, inner)) = entry.shape.split_first() else { return tensor(bytes, &[]) };
        if rows.end > count || rows.start > rows.end {
            bail!(Shape, "{}: tensor `{name}` has rows 0..{count}, asked for {rows:?}", self.origin);
        }
        if entry.reversed {
            let shape: Vec<usize> = entry.shape.iter().rev().copied().collect();
            let order: Vec<usize> = (0..shape.len()).rev().collect();
            return tensor(bytes, &shape)?.permute(order)?.narrow(0, rows.start, rows.len())?.contiguous();
        }
        let row = bytes.len() / count.max(1);
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(inner.iter().copied()).collect();
        tensor(&bytes[rows.start * row..rows.end * row], &shape)
    }

    /// As [`Archive::read_rows`], of what a model computes with: NaN and infinities are refused.
    pub fn read_numbers(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let bytes = self.bytes(entry);
        let row = bytes.len() / entry.shape.first().copied().unwrap_or(1).max(1);
        let wanted = if entry.reversed { Some(bytes) } else { bytes.get(rows.start * row..rows.end * row) };
        if let Some(what) = wanted.and_then(|bytes| not_finite(bytes, entry.dtype)) {
            bail!(Numeric, "{}: tensor `{name}` has numbers that are {what}", self.origin;
                hint: "the training that wrote the file broke, or the file is damaged");
        }
        self.read_rows(name, rows)
    }

    fn bytes(&self, entry: &TensorEntry) -> &[u8] {
        let all = match &self.body {
            Body::File(map) => &map[..],
            Body::Embedded(bytes) => bytes,
        };
        &all[entry.begin as usize..entry.end as usize]
    }

    fn entry(&self, name: &str) -> Result<&TensorEntry> {
        let missing = || Error::new(Kind::Missing, format!("{}: no tensor `{name}`", self.origin));
        self.entries.get(name).ok_or_else(missing)
    }
}

/// What one of these floats is that is not finite, sought in blocks that the compiler turns into wide instructions.
fn not_finite(bytes: &[u8], dtype: DType) -> Option<&'static str> {
    fn any<const N: usize>(bytes: &[u8], is_such: impl Fn([u8; N]) -> bool) -> bool {
        let (numbers, _) = bytes.as_chunks::<N>();
        numbers.chunks(4096).any(|block| block.iter().fold(false, |found, number| found | is_such(*number)))
    }
    // 1 beyond an infinity, without the sign, NaN begins
    let reaches = |beyond: u16| match dtype {
        DType::F64 => any(bytes, |b| u64::from_le_bytes(b) & (u64::MAX >> 1) >= (0x7ff << 52) + u64::from(beyond)),
        DType::F32 => any(bytes, |b| u32::from_le_bytes(b) & (u32::MAX >> 1) >= (0xff << 23) + u32::from(beyond)),
        DType::BF16 => any(bytes, |b| u16::from_le_bytes(b) & (u16::MAX >> 1) >= (0xff << 7) + beyond),
        DType::F16 => any(bytes, |b| u16::from_le_bytes(b) & (u16::MAX >> 1) >= (0x1f << 10) + beyond),
        _ => false,
    };
    reaches(0).then(|| if reaches(1) { "NaN" } else { "infinite" })
}

/// A number of four bits of exponent and three of mantissa (F8_E4M3 without infinities, arXiv:2209.05433).
fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits < 128 { size } else { -size }
}

/// Tensors, and texts beside them.
pub(super) type Header = (BTreeMap<String, TensorEntry>, BTreeMap<String, String>);

fn safetensors_entries(bytes: &[u8]) -> Result<Header> {
    let length = header_length(bytes, bytes.len() as u64)?;
    parse_header(&bytes[8..8 + length as usize], bytes.len() as u64)
}

fn header_length(start: &[u8], size: u64) -> Result<u64> {
    if start.starts_with(b"PK") {
        bail!(File, "expected a safetensors file, got a zip file"; hint: "name a PyTorch file `.pt`");
    }
    if start.starts_with(b"version ") {
        bail!(File, "expected a safetensors file, got a Git LFS pointer"; hint: "fetch the file itself with `git lfs pull`");
    }
    let Some(Ok(length)) = start.get(..8).map(|bytes| <[u8; 8]>::try_from(bytes).map(u64::from_le_bytes)) else {
        bail!(File, "expected a safetensors file, got {size} bytes");
    };
    if length > MAX_HEADER {
        if let Some((kind, hint)) = other_kind(start) {
            bail!(File, "expected a safetensors file, got {kind}"; hint: "{hint}");
        }
        bail!(File, "expected a safetensors header of at most {MAX_HEADER} bytes, got {length}";
            hint: "the file is damaged or not a safetensors file");
    }
    if length + 8 > size {
        bail!(File, "the header needs {} bytes, got a file of {size}", length + 8; hint: "the file is cut off; fetch it again");
    }
    Ok(length)
}

/// How Git's pointer to a large file begins, what it is, and what to do.
pub(super) const LFS_POINTER: (&[u8], &str, &str) =
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`");

/// What a file is that begins like this and holds no tensors that are read here, and what to do.
pub(super) fn other_kind(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const KINDS: [(&[u8], &str, &str); 6] = [
        (b"GGUF", "a GGUF file", "take the model in safetensors, in bf16 or f32"),
        (b"<", "HTML or XML", "a page was saved instead of the file; fetch the file itself"),
        (b"{", "JSON", "name the file of tensors itself"),
        (b"\x93NUMPY", "a NumPy file", "save it with `safetensors.numpy.save_file`"),
        (b"\x89HDF", "an HDF5 file", "convert it to safetensors where it came from"),
        LFS_POINTER,
    ];
    let start = start.trim_ascii_start();
    KINDS.iter().find(|(magic, ..)| start.starts_with(magic)).map(|(_, kind, hint)| (*kind, *hint))
}

#[derive(Deserialize)]
struct Field {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// A header as it is written; more tensors than there may be are not read.
#[derive(Default)]
struct Fields {
    tensors: Vec<(String, Field)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: de::Deserializer<'de>>(source: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> de::Visitor<'de> for Reader {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<String>()? {
                    let place =
                        |e| de::Error::custom(format_args!("tensor `{name}`: the header entry is not valid ({e})"));
                    match name.as_str() {
                        "__metadata__" => fields.metadata = map.next_value()?,
                        _ => {
                            let field = map.next_value().map_err(place)?;
                            fields.tensors.push((name, field));
                        }
                    }
                    check_count(fields.tensors.len()).map_err(de::Error::custom)?;
                }
                Ok(fields)
            }
        }
        source.deserialize_map(Reader)
    }
}

fn parse_header(header: &[u8], size: u64) -> Result<Header> {
    let unreadable =
        |e: serde_json::Error| Error::new(Kind::File, format!("the safetensors header is not valid ({e})"));
    let Fields { tensors, metadata } = serde_json::from_slice(header).map_err(unreadable)?;
    let start = 8 + header.len() as u64;
    let mut entries = BTreeMap::new();
    for (name, field) in tensors {
        let [begin, end] = field.data_offsets;
        let dtype = dtype_of(&field.dtype).map_err(|e| e.within(format!("tensor `{name}`")))?;
        check_rank(&field.shape).map_err(|e| e.within(format!("tensor `{name}`")))?;
        if entries.contains_key(&name) {
            bail!(File, "tensor `{name}` is there twice");
        }
        if end > size - start {
            bail!(File, "tensor `{name}` ends at byte {} of a file of {size} bytes", start.saturating_add(end);
                hint: "the file is cut off; fetch it again");
        }
        if end.checked_sub(begin).is_none() || end.checked_sub(begin) != byte_size(&field.shape, dtype) {
            bail!(
                File,
                "tensor `{name}`: shape {:?} of {} does not fill bytes {begin}..{end}",
                field.shape,
                field.dtype
            );
        }
        let (begin, end) = (start + begin, start + end);
        entries.insert(name, TensorEntry { dtype, shape: field.shape, begin, end, reversed: false });
    }
    check_cover(&entries, start, size)?;
    Ok((entries, metadata))
}

/// The tensors lie one after the other and fill the file.
fn check_cover(entries: &BTreeMap<String, TensorEntry>, start: u64, size: u64) -> Result<()> {
    let mut order: Vec<(&String, &TensorEntry)> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.begin, entry.end));
    let mut reached = start;
    for (name, entry) in order {
        if entry.begin != reached {
            bail!(File, "tensor `{name}` starts at byte {} where {reached} was expected", entry.begin);
        }
        reached = entry.end;
    }
    if reached != size {
        bail!(File, "the tensors end at byte {reached} of a file of {size} bytes");
    }
    Ok(())
}

pub(super) fn check_count(count: usize) -> Result<()> {
    if count > MAX_TENSORS {
        bail!(Limit, "expected at most {MAX_TENSORS} tensors, got {count}");
    }
    Ok(())
}

pub(super) fn check_rank(shape: &[usize]) -> Result<()> {
    if shape.len() > MOST_RANK {
        bail!(Limit, "expected at most {MOST_RANK} dimensions, got {}", shape.len());
    }
    Ok(())
}

pub(super) fn byte_size(shape: &[usize], dtype: DType) -> Option<u64> {
    shape.iter().try_fold(dtype.size_in_bytes() as u64, |bytes, &n| bytes.checked_mul(n as u64))
}

const DTYPES: [(&str, DType); 11] = [
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("F64", DType::F64),
    ("F8_E4M3", DType::F8E4M3),
    ("I64", DType::I64),
    ("I32", DType::I32),
    ("I16", DType::I16),
    ("U32", DType::U32),
    ("U8", DType::U8),
    ("BOOL", DType::U8),
];

fn dtype_of(name: &str) -> Result<DType> {
    match DTYPES.iter().find(|(known, _)| *known == name) {
        Some((_, dtype)) => Ok(*dtype),
        None => {
            bail!(Dtype, "type {name} is not supported"; hint: "convert the file to bf16 or f32 where it came from")
        }
    }
}

/// Refuses a name whose ending says that a file holds something else.
pub fn check_ending(path: &Path) -> Result<()> {
    match path.extension() {
        Some(ending) if !ending.eq_ignore_ascii_case("safetensors") => {
            bail!(Value, "file must end in .safetensors, got `{}`", path.display())
        }
        _ => Ok(()),
    }
}

/// Writes a safetensors file, whole or not at all. Equal tensors give equal bytes.
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let tensors: BTreeMap<&str, &Tensor> = tensors.into_iter().collect();
    let shapes = tensors.iter().map(|(name, tensor)| (*name, (tensor.dtype(), tensor.dims()))).collect();
    write_each(path, &shapes, metadata, |name| Ok(tensors[name].constant()))
}

/// As [`write`], tensors of these types and shapes, each asked for when it is written.
pub fn write_each(
    path: &Path,
    shapes: &BTreeMap<&str, (DType, &[usize])>,
    metadata: &BTreeMap<String, String>,
    mut tensor: impl FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    let refused = |e: std::io::Error| Error::new(Kind::File, format!("{}: {e}", path.display()));
    check_count(shapes.len()).map_err(|e| e.within(path.display()))?;
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (name, (of, dims)) in shapes {
        let Some((dtype, _)) = DTYPES.iter().find(|(_, dtype)| dtype == of) else {
            bail!(Dtype, "{}: tensor `{name}` of type {of:?} cannot be saved", path.display());
        };
        let end = offset + dims.iter().product::<usize>() * of.size_in_bytes();
        let entry = serde_json::json!({"dtype": dtype, "shape": dims, "data_offsets": [offset, end]});
        header.insert(name.to_string(), entry);
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > MAX_HEADER {
        bail!(Limit, "{}: names and shapes must take at most {MAX_HEADER} bytes, got {}", path.display(), header.len());
    }
    if !Context::current().group().speaks() {
        return Ok(());
    }
    let mut file = Draft::new(path).map_err(refused)?;
    file.write(&(header.len() as u64).to_le_bytes()).map_err(refused)?;
    file.write(&header).map_err(refused)?;
    let shown = format!("saving {}", path.file_name().unwrap_or_default().to_string_lossy());
    let _shown = Progress::bytes(shown, offset as u64);
    for name in shapes.keys() {
        let tensor = tensor(name)?.to_device(&Device::Cpu)?.contiguous()?;
        let bytes = memory::bytes(tensor.dims(), tensor.dtype().size_in_bytes());
        memory::room(bytes, || format!("writing tensor `{name}`"))?;
        file.write(&safetensors::View::data(&tensor.array())).map_err(refused)?;
        progress::bytes((tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64);
    }
    file.finish().map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::TempPath {
        let mut file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into_temp_path()
    }

    fn refusal(bytes: &[u8]) -> String {
        let path = file(bytes);
        let message = Archive::open(&path).err().expect("refused").to_string();
        message.replace(&path.display().to_string(), "F")
    }

    fn with_header(header: &str, body: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + body, 0);
        bytes
    }

    #[test]
    fn written_tensors_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let a = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let b = a.flatten_all().unwrap().to_dtype(DType::F16).unwrap();
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write(&path, [("b", &b), ("a", &a.t().unwrap())], &metadata).unwrap();
        let archive = Archive::open(&path).unwrap();
        assert_eq!(archive.read("a").unwrap().to_vec2::<f32>().unwrap(), [[1.0, 3.0], [2.0, 4.0]]);
        assert_eq!(archive.read("b").unwrap().dtype(), DType::F16);
        let read = safetensors::SafeTensors::deserialize(&std::fs::read(&path).unwrap()).map(|s| s.len());
        assert_eq!(read.unwrap(), 2);
    }

    #[test]
    fn numbers_of_eight_bits_are_read() {
        let header = r#"{"x":{"dtype":"F8_E4M3","shape":[2,4],"data_offsets":[0,8]}}"#;
        let mut bytes = with_header(header, 0);
        bytes.extend([0x38, 0xc0, 0x01, 0x80, 0x7e, 0xff, 0x08, 0x3c]); // as ml_dtypes 0.5 has them
        let read =
            Archive::open(&file(&bytes)).unwrap().read("x").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(read[..5], [1.0, -2.0, 0.001953125, 0.0, 448.0]);
        assert!(read[5].is_nan() && read[6..] == [0.015625, 1.5]);
        let other = header.replace("E4M3", "E5M2");
        assert!(refusal(&with_header(&other, 8)).contains("tensor `x`: type F8_E5M2 is not supported"));
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        let one = r#"{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
        assert!(Archive::open(&file(&with_header(one, 16))).is_ok());
        assert!(refusal(&with_header(one, 12)).contains("F: tensor `x` ends at byte 81 of a file of 77 bytes"));
        assert!(refusal(&with_header(one, 20)).contains("the tensors end at byte"));
        let shape = one.replace("[2,2]", "[2,3]");
        assert!(
            refusal(&with_header(&shape, 16)).contains("tensor `x`: shape [2, 3] of F32 does not fill bytes 0..16")
        );
        let many = one.replace("[2,2]", &format!("[4{}]", ",1".repeat(16)));
        assert!(refusal(&with_header(&many, 16)).contains("F: tensor `x`: expected at most 16 dimensions, got 17"));
        let huge = one.replace("[2,2]", "[4294967296,4294967296]");
        assert!(refusal(&with_header(&huge, 16)).contains("does not fill"));
        let two = r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        assert!(refusal(&with_header(two, 6)).contains("tensor `y` starts at byte"));
        assert!(refusal(b"PK\x03\x04 zip").contains("got a zip file"));
        assert!(refusal(b"version https://git-lfs").contains("Git LFS"));
        assert!(refusal(&u64::MAX.to_le_bytes()).contains("at most 16777216 bytes"));
        assert!(refusal(b"abc").contains("got 3 bytes"));
        assert!(refusal(&with_header("{\"x\": 3}", 0)).contains("tensor `x`: the header entry is not valid"));
    }
}
