//! Event files for TensorBoard: records of a length, checksums and a protocol buffer (`tensorflow/core/util/event.proto`), written by hand.
//!
//! Tests compare with the bytes of TensorBoard's own writer; `tests/interop/events.py` made those and reads ours back.

use super::log::{PROFILE, Values};
use super::record::file_error;
use super::report::{reading::Reading, strip, within};
use amscript_base::error::Result;
use amscript_base::file;
use amscript_nn::data::image;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The file of each run; written again, it takes the place of what it was, so that nothing is there twice.
const FILE: &str = "events.out.tfevents.0.amscript";

/// One value of a step.
enum Value {
    Scalar(f32),
    /// Height, width, and the bytes of a PNG or JPEG file.
    Image(u32, u32, Vec<u8>),
}

/// Writes `<folder>/<run>/events.out.tfevents.0.amscript` for each run; gives the paths.
///
/// Logged values are scalars, of several numbers the mean; the control at each active step is a scalar each, counted from the end.
/// Logs hold no times: all events have that of the log file.
pub fn write(runs: &[Reading], folder: &Path) -> Result<Vec<PathBuf>> {
    runs.iter().map(|run| write_run(run, &folder.join(&run.name))).collect()
}

fn write_run(run: &Reading, folder: &Path) -> Result<PathBuf> {
    let modified = file::modified(&run.folder.join("metrics.jsonl")).ok();
    let time = modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |t| t.as_secs_f64());
    let mut bytes = record(&version(time));
    for (step, values) in &run.lines {
        bytes.extend(record(&event(time, *step as u64, &scalars(values))));
    }
    let end = run.lines.last().map_or(0, |(step, _)| *step);
    for strip in strip::of(run, &mut Vec::new()) {
        for shot in strip.shots {
            // one that cannot be read is noted by the page
            let picture = within(std::slice::from_ref(&run.folder), || picture(&shot.path));
            let Ok((height, width, file)) = picture else { continue };
            let step = shot.step.unwrap_or(end) as u64;
            bytes.extend(record(&event(time, step, &[(strip.name.clone(), Value::Image(height, width, file))])));
        }
    }
    let path = folder.join(FILE);
    let written = file::make_folder(folder).and_then(|()| file::write_whole(&path, &bytes));
    written.map_err(|e| file_error(&path, "write", &e).within("report: --tensorboard"))?;
    Ok(path)
}

fn scalars(values: &Values) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for (name, numbers) in values {
        if name == PROFILE {
            let from_end = numbers.iter().rev().enumerate();
            out.extend(from_end.map(|(k, v)| (format!("{name}/end-{k:02}"), Value::Scalar(*v as f32))));
        } else {
            out.push((name.clone(), Value::Scalar((numbers.iter().sum::<f64>() / numbers.len() as f64) as f32)));
        }
    }
    out
}

fn picture(path: &Path) -> std::io::Result<(u32, u32, Vec<u8>)> {
    let bytes = file::read_within(path, image::MAX_FILE)?;
    let image = image::decode(&bytes).map_err(std::io::Error::other)?;
    Ok((image.height(), image.width(), bytes))
}

/// The event that a file begins with: which format it has.
fn version(time: f64) -> Vec<u8> {
    let mut out = double(1, time);
    out.extend(bytes(3, b"brain.Event:2"));
    out
}

/// An event with a summary of values.
fn event(time: f64, step: u64, values: &[(String, Value)]) -> Vec<u8> {
    let summary: Vec<u8> = values.iter().flat_map(|(tag, value)| bytes(1, &summary_value(tag, value))).collect();
    let mut out = double(1, time);
    if step != 0 {
        out.extend(integer(2, step));
    }
    out.extend(bytes(5, &summary));
    out
}

fn summary_value(tag: &str, value: &Value) -> Vec<u8> {
    let mut out = bytes(1, tag.as_bytes());
    match value {
        Value::Scalar(number) => {
            out.push(2 << 3 | 5); // four bytes
            out.extend(number.to_le_bytes());
        }
        Value::Image(height, width, file) => {
            let mut image = integer(1, u64::from(*height));
            image.extend(integer(2, u64::from(*width)));
            image.extend(integer(3, 3)); // RGB
            image.extend(bytes(4, file));
            out.extend(bytes(4, &image));
        }
    }
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn integer(field: u8, value: u64) -> Vec<u8> {
    [vec![field << 3], varint(value)].concat()
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2], varint(value.len() as u64).as_slice(), value].concat()
}

/// A double; zero is the default and left out.
fn double(field: u8, value: f64) -> Vec<u8> {
    if value == 0.0 { Vec::new() } else { [&[field << 3 | 1], value.to_le_bytes().as_slice()].concat() }
}

/// Length, its checksum, the data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// CRC-32C, turned and shifted as TFRecord files have it, since checksums of data with checksums inside are weak.
fn masked(data: &[u8]) -> u32 {
    crc(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), a byte at a time.
fn crc(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !data.iter().fold(!0, |crc, byte| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut value, mut bit) = (i as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0x82f6_3b78 } else { value >> 1 };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, appendix B.4
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc(b"123456789"), 0xe306_9283);
    }

    /// What TensorBoard's own writer makes of the same events, byte for byte.
    #[test]
    fn events_are_those_of_the_reference_writer() {
        let golden = include_bytes!("../../../tests/golden/tensorboard/events.tfevents");
        let png = include_bytes!("../../../tests/golden/tensorboard/pixel.png");
        let scalar = |tag: &str, value: f32| (tag.to_string(), Value::Scalar(value));
        let time = 1_790_000_000.25;
        let events = [
            version(time),
            event(time, 0, &[scalar("loss", 0.0)]),
            event(time, 1, &[scalar("loss", -1.5), scalar("reward, ü", f32::NAN)]),
            event(time, 300, &[("samples".into(), Value::Image(2, 3, png.to_vec()))]),
            event(time, 1 << 40, &[scalar("loss", f32::INFINITY)]),
        ];
        let ours: Vec<u8> = events.iter().flat_map(|e| record(e)).collect();
        assert_eq!(ours, golden);
    }
}
