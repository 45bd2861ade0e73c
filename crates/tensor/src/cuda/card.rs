//! The cards that are open, each once: whatever names a card gets the same device, so that all its work goes to one stream.

use super::Unit;
use super::transfer::Buffer;
use amscript_base::bail;
use amscript_base::error::{Error, Result};
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, DriverError, result, sys};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{CudaDevice, Device};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

/// What is kept of a card while the process runs.
pub(super) struct Card {
    device: CudaDevice,
    /// The virtual architecture that kernels are compiled for, such as 90.
    pub architecture: i32,
    /// Kernels that are loaded.
    pub functions: Mutex<HashMap<(Unit, &'static str), CudaFunction>>,
    /// For what is sent to it.
    pub buffers: Mutex<Option<[Buffer; 2]>>,
}

/// A driver is one for the whole process, and so are its cards: a second device of a card would be a second stream that nothing orders.
#[derive(Default)]
struct Cards {
    open: Vec<(usize, Arc<Card>)>,
    /// Compiled kernels by architecture: cards of one kind share them.
    compiled: HashMap<(i32, Unit), Ptx>,
}

static CARDS: Mutex<Option<Cards>> = Mutex::new(None);

/// The device of card `n`, opened where it is not yet. Freed memory stays with the process.
pub fn open(n: usize) -> Result<Device> {
    let mut cards = CARDS.lock();
    let open = &mut cards.get_or_insert_default().open;
    if let Some((_, card)) = open.iter().find(|(i, _)| *i == n) {
        return Ok(Device::Cuda(card.device.clone()));
    }
    result::init().map_err(|e| fault("driver", e))?;
    let there = result::device::get_count().map_err(|e| fault("driver", e))?;
    if n as i64 >= i64::from(there) {
        let names: Vec<String> = (0..there).map(|i| format!("`cuda:{i}`")).collect();
        bail!(Device, "no card {n}: {there} can be seen"; hint: "choose {}, and look at `nvidia-smi` and CUDA_VISIBLE_DEVICES", match there {
            0 => "`cpu`".to_string(),
            _ => names.join(" or "),
        });
    }
    let Device::Cuda(device) = Device::new_cuda_with_stream(n)? else {
        bail!(Internal, "open: expected a CUDA device")
    };
    // SAFETY: there is one stream, so that everything happens in the order in which it was asked for.
    unsafe { device.disable_event_tracking() };
    let stream = device.cuda_stream();
    let (major, minor) = stream.context().compute_capability().map_err(|e| fault("device", e))?;
    if major < 8 {
        bail!(
            Device,
            "card {n} has compute capability {major}.{minor}, expected at least 8.0";
            hint: "take a card of 2020 or later (A100, RTX 30), or `--device cpu`"
        );
    }
    // Without pools memory is asked of the driver each time: slower, and its peak is not known.
    let _ = keep_freed(&device);
    let architecture = architecture(10 * major + minor)?;
    let card = Card { device: device.clone(), architecture, functions: Mutex::default(), buffers: Mutex::default() };
    open.push((n, Arc::new(card)));
    Ok(Device::Cuda(device))
}

/// What is kept of a device's card. Devices opened elsewhere are refused: nothing would order their work with that of others.
pub(super) fn of(device: &CudaDevice) -> Result<Arc<Card>> {
    let found = CARDS.lock().as_ref().and_then(|cards| {
        cards.open.iter().find(|(_, card)| card.device.id() == device.id()).map(|(_, card)| card.clone())
    });
    let Some(card) = found else {
        bail!(Device, "expected a device that `place::named` opened, got another one of the same card")
    };
    Ok(card)
}

/// The compiled text of a unit, from `compile` where no card of this architecture had it yet.
pub(super) fn compiled(architecture: i32, unit: &Unit, compile: impl FnOnce() -> Result<Ptx>) -> Result<Ptx> {
    let key = (architecture, unit.clone());
    let found = CARDS.lock().get_or_insert_default().compiled.get(&key).cloned();
    if let Some(ptx) = found {
        return Ok(ptx);
    }
    let ptx = compile()?;
    CARDS.lock().get_or_insert_default().compiled.insert(key, ptx.clone());
    Ok(ptx)
}

/// The newest architecture that the compiler found here knows and a card of capability `most` runs.
fn architecture(most: i32) -> Result<i32> {
    use candle_core::cuda_backend::cudarc::nvrtc::sys as nvrtc;
    let mut n = 0;
    // SAFETY: the first call writes one number, the second as many as the first said.
    let known = unsafe {
        nvrtc::nvrtcGetNumSupportedArchs(&mut n).result().map_err(|e| fault("NVRTC", e))?;
        let mut known = vec![0; n as usize];
        nvrtc::nvrtcGetSupportedArchs(known.as_mut_ptr()).result().map_err(|e| fault("NVRTC", e))?;
        known
    };
    let Some(best) = known.iter().filter(|a| **a <= most).max() else {
        bail!(Device, "NVRTC compiles for {known:?}, and the card is {most}"; hint: "install NVRTC of CUDA 13")
    };
    Ok(*best)
}

pub(super) fn fault(what: &str, error: impl std::fmt::Debug) -> Error {
    amscript_base::card::error(format!("{what}: {error:?}"))
}

fn pool(device: &CudaDevice) -> std::result::Result<sys::CUmemoryPool, DriverError> {
    let stream = device.cuda_stream();
    let context = stream.context();
    context.bind_to_thread()?;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the pool is written by the call.
    unsafe { sys::cuDeviceGetMemPool(&mut pool, context.cu_device()) }.result()?;
    Ok(pool)
}

fn set(device: &CudaDevice, what: sys::CUmemPool_attribute, mut value: u64) -> std::result::Result<(), DriverError> {
    // SAFETY: these attributes are 64-bit numbers.
    unsafe { sys::cuMemPoolSetAttribute(pool(device)?, what, (&raw mut value).cast::<c_void>()) }.result()
}

fn keep_freed(device: &CudaDevice) -> std::result::Result<(), DriverError> {
    set(device, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
}

/// `f`; where the card has no room for it, once more after what was freed has been given back to the driver.
pub(super) fn with_room<T>(device: &CudaDevice, f: impl Fn() -> Result<T>) -> Result<T> {
    match f() {
        Err(e) if ["OUT_OF_MEMORY", "ALLOC_FAILED"].iter().any(|name| e.message.contains(name)) => {
            device.cuda_stream().synchronize().map_err(|e| fault("memory", e))?;
            // SAFETY: only memory that nobody holds is given back.
            let trimmed = pool(device).map(|pool| unsafe { sys::cuMemPoolTrimTo(pool, 0) });
            if trimmed.is_err() { Err(e) } else { f() }
        }
        other => other,
    }
}

/// Bytes in use at most since the last reset; none where the card has no pools.
fn high(device: &CudaDevice) -> Option<u64> {
    let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let (pool, mut value) = (pool(device).ok()?, 0u64);
    // SAFETY: this attribute is a 64-bit number.
    unsafe { sys::cuMemPoolGetAttribute(pool, high, (&raw mut value).cast::<c_void>()) }.result().ok()?;
    Some(value)
}

/// Bytes in use at most since the last call, after all that was asked for has been done; none where the card has no pools.
pub fn peak_memory(device: &CudaDevice) -> Result<Option<u64>> {
    device.cuda_stream().synchronize().map_err(|e| fault("memory", e))?;
    let Some(value) = high(device) else { return Ok(None) };
    set(device, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0).map_err(|e| fault("memory", e))?;
    Ok(Some(value))
}

/// The same of all open cards together, without a reset; none without an open card.
pub fn peak_of_all() -> Option<u64> {
    CARDS.lock().as_ref()?.open.iter().map(|(_, card)| high(&card.device)).sum()
}
