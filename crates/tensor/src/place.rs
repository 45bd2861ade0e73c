//! Devices by name.

use super::{DType, Device, Tensor};
use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::profile::Wait;

/// `cpu`, `cuda` (the first card) or `cuda:N`.
pub fn named(name: &str) -> Result<Device> {
    let card = match name.split_once(':').unwrap_or((name, "0")) {
        ("cpu", "0") => return Ok(Device::Cpu),
        ("cuda", card) => card.parse::<usize>().ok(),
        _ => None,
    };
    let Some(card) = card else {
        bail!(Device, "expected `cpu`, `cuda` or `cuda:N`, got `{name}`");
    };
    open(card).map_err(|e| {
        let error = e.within(format_args!("device {name}"));
        if cfg!(feature = "cuda") { error } else { error.hint("this binary was built without `--features cuda`") }
    })
}

#[cfg(feature = "cuda")]
use super::cuda::card::open;

#[cfg(not(feature = "cuda"))]
fn open(card: usize) -> Result<Device> {
    Ok(Device::new_cuda(card)?) // its error
}

/// The device that the variable `AMSCRIPT_DEVICE` names, else the processor.
pub fn from_environment() -> Result<Device> {
    let name = std::env::var("AMSCRIPT_DEVICE").ok().filter(|name| !name.is_empty());
    name.map_or(Ok(Device::Cpu), |name| named(&name))
}

/// `cpu`, `cuda:0`, `metal:0`.
pub fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// What a profile calls before it takes the time; none where nothing goes on by itself.
pub fn wait(device: &Device) -> Option<Wait> {
    let device = device.clone();
    // An error stays with the device, and the next operation says it.
    (!device.is_cpu()).then(|| Box::new(move || drop(device.synchronize())) as Wait)
}

/// Bytes in use at most on a CUDA device since the last call, once all its work is done; nothing where it is another.
pub fn peak_memory(device: &Device) -> Result<Option<u64>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(card) => super::cuda::card::peak_memory(card),
        _ => Ok(None),
    }
}

/// Bytes in use at most on all cards of this process; none where it uses no card.
pub fn peak_of_cards() -> Option<u64> {
    #[cfg(feature = "cuda")]
    return super::cuda::card::peak_of_all();
    #[cfg(not(feature = "cuda"))]
    None
}

/// Numbers of the processor on a device, in a float type: to a card in their own, by page-locked memory, and cast there.
pub fn send(x: &Tensor, dtype: DType, device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Device::Cuda(card), true) = (device, x.dtype() != DType::F64 && x.elem_count() > 0) {
        return Tensor::from(super::cuda::transfer::send(x.contiguous()?.array(), card)?).to_dtype(dtype);
    }
    x.to_dtype(dtype)?.to_device(device)
}
