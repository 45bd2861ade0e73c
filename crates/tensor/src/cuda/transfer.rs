//! Numbers on their way to the card, through two page-locked buffers that take turns: one is copied while the other is filled.

use super::card::{self, fault};
use super::driver::pointer;
use super::fresh;
use crate::Array;
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, PinnedHostSlice, result};
use candle_core::{CpuStorage, CudaDevice, Device, Storage};

/// Bytes of a buffer.
const SIZE: usize = 32 << 20;

/// A buffer, and when its last copy is done.
pub(super) struct Buffer {
    bytes: PinnedHostSlice<u8>,
    free: Option<CudaEvent>,
}

fn buffers(device: &CudaDevice) -> Result<[Buffer; 2]> {
    let stream = device.cuda_stream();
    // SAFETY: bytes are written before they are copied.
    let new = || unsafe { stream.context().alloc_pinned::<u8>(SIZE) }.map_err(|e| fault("page-locked memory", e));
    Ok([Buffer { bytes: new()?, free: None }, Buffer { bytes: new()?, free: None }])
}

/// A contiguous tensor of the processor on the card, in its own type. It is there for whatever is asked of the device next; only filling the buffers
/// is waited for.
pub fn send(x: &Array, device: &CudaDevice) -> Result<Array> {
    let out = fresh(x.shape(), x.dtype(), &Device::Cuda(device.clone()))?;
    let (storage, layout) = x.storage_and_layout();
    let start = match &*storage {
        Storage::Cpu(CpuStorage::F32(v)) => v.as_ptr().cast::<u8>(),
        Storage::Cpu(CpuStorage::BF16(v)) => v.as_ptr().cast(),
        Storage::Cpu(CpuStorage::F16(v)) => v.as_ptr().cast(),
        _ => bail!(Internal, "send: expected f32, bf16 or f16 of the processor, got {:?}", x.dtype()),
    };
    let size = x.dtype().size_in_bytes();
    let Some((first, last)) = layout.contiguous_offsets() else {
        bail!(Internal, "send: expected a contiguous tensor, got strides {:?}", x.stride());
    };
    // SAFETY: the tensor's own numbers, which it holds until the end.
    let bytes = unsafe { std::slice::from_raw_parts(start.add(first * size), (last - first) * size) };
    let card = card::of(device)?;
    let mut held = card.buffers.lock();
    if held.is_none() {
        *held = Some(buffers(device)?);
    }
    let Some(turns) = held.as_mut() else { return Ok(out) };
    let (stream, to) = (device.cuda_stream(), pointer(&out)?);
    for (i, part) in bytes.chunks(SIZE).enumerate() {
        let buffer = &mut turns[i % 2];
        if let Some(event) = buffer.free.take() {
            event.synchronize().map_err(|e| fault("send", e))?;
        }
        let filled = &mut buffer.bytes.as_mut_slice().map_err(|e| fault("send", e))?[..part.len()];
        filled.copy_from_slice(part);
        // SAFETY: the output has room for all parts; the buffer is not touched before the event below.
        let copy = unsafe { result::memcpy_htod_async(to + (i * SIZE) as u64, filled, stream.cu_stream()) };
        copy.map_err(|e| fault("send", e))?;
        buffer.free = Some(stream.record_event(None).map_err(|e| fault("send", e))?);
    }
    Ok(out)
}
