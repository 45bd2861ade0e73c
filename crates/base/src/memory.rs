//! What the process holds and may hold. Large things ask for room before they are made: an allocation that fails ends the process, and
//! nothing is saved. Memory is the process's, so this is not a host's.

use crate::bail;
use crate::error::Result;
use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD: AtomicUsize = AtomicUsize::new(0);
static BOUND: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator, counting; a program that wants a bound makes it its own with `#[global_allocator]`.
pub struct Counting;

// SAFETY: all is the system's; the count is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_add(size.wrapping_sub(layout.size()), Ordering::Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Bytes held now; 0 without [`Counting`].
pub fn held() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// Sets what may be held; beyond it [`room`] errs.
pub fn set_bound(bytes: usize) {
    BOUND.store(bytes, Ordering::Relaxed);
}

/// Nine tenths of what this process can still get: free memory, its control group's and its address space's.
pub fn free() -> Option<usize> {
    let available = number_of("/proc/meminfo", "MemAvailable:").map(|kilobytes| kilobytes * 1024);
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let least = [available, group, address_space()].into_iter().flatten().min()?;
    Some(least / 10 * 9)
}

/// The number behind a word at the beginning of a line.
fn number_of(file: &str, word: &str) -> Option<usize> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(word))?.split_whitespace().next()?.parse().ok()
}

/// Bytes of addresses that this process can still get, where they are bounded.
#[cfg(unix)]
pub fn address_space() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one `rlimit`.
    let answer = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    let limit = (answer == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur as usize)?;
    Some(limit.saturating_sub(number_of("/proc/self/status", "VmSize:")? * 1024))
}

/// Addresses are not bounded here.
#[cfg(not(unix))]
pub fn address_space() -> Option<usize> {
    None
}

/// Errs where more is held than may be.
pub fn check() -> Result<()> {
    room(Some(0), || "the script")
}

/// Errs where `bytes` more would be more than may be held; none are more than can be counted.
pub fn room<D: Display>(bytes: Option<usize>, what: impl FnOnce() -> D) -> Result<()> {
    let (held, bound) = (held(), BOUND.load(Ordering::Relaxed));
    if bytes.is_some_and(|bytes| held.checked_add(bytes).is_some_and(|all| all <= bound)) {
        return Ok(());
    }
    let wanted = bytes.map_or("more bytes than can be counted".into(), size);
    bail!(
        Limit,
        "{}: expected room for {wanted}, got {} of which {} are held", what(), size(bound), size(held);
        hint: "make it smaller, or raise the bound, as with `--max-memory 8GB`"
    )
}

/// Errs where JSON, read as values, would be more than may be held.
pub fn room_for_json<D: Display>(text: &[u8], what: impl FnOnce() -> D) -> Result<()> {
    room(Some(json_bytes(text)), what)
}

/// Bytes of JSON that is read as values and copied once, at most: a map of one entry has room for eleven, a list for four.
fn json_bytes(text: &[u8]) -> usize {
    let each = |letter: &u8| match letter {
        b'{' => 1500,
        b'[' => 300,
        b',' => 200,
        _ => 2,
    };
    text.iter().map(each).sum()
}

/// Bytes in gigabytes; few as they are, for those who left the unit out.
fn size(n: usize) -> String {
    if n < 10_000_000 { format!("{n} bytes") } else { format!("{:.2} GB", n as f64 / 1e9) }
}

/// Bytes of `dims` numbers of `size` bytes each, where they can be counted.
pub fn bytes(dims: &[usize], size: usize) -> Option<usize> {
    dims.iter().try_fold(size, |all, n| all.checked_mul(*n)).filter(|bytes| isize::try_from(*bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_takes_more_than_its_text() {
        let maps = format!("[{}]", vec!["{\"a\":0}"; 1000].join(","));
        assert!(json_bytes(maps.as_bytes()) > 150 * maps.len());
        let texts = format!("[{}]", vec!["\"a text of thirty letters or so\""; 1000].join(","));
        assert!(json_bytes(texts.as_bytes()) < 10 * texts.len());
    }

    #[test]
    fn what_cannot_be_counted_is_refused_with_its_name() {
        assert_eq!(bytes(&[2, 3], 4), Some(24));
        assert_eq!((bytes(&[usize::MAX, 2], 4), bytes(&[1 << 62], 4)), (None, None));
        let error = room(bytes(&[1 << 40, 1 << 40], 4), || "zeros").unwrap_err();
        assert!(error.message.starts_with("zeros: expected room for more bytes than"), "{error}");
        assert_eq!([size(8), size(8_000_000_000)], ["8 bytes", "8.00 GB"]);
        assert!(room(Some(1 << 20), || "zeros").is_ok() && check().is_ok());
        assert!(free().is_none_or(|n| n > 0));
    }
}
