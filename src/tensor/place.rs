//! Devices by name.

use super::Device;
use crate::bail;
use crate::error::Result;

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
use super::cuda::driver::open;

#[cfg(not(feature = "cuda"))]
fn open(card: usize) -> Result<Device> {
    Ok(Device::new_cuda(card)?) // its error
}

/// The device that the variable `AMSCRIPT_DEVICE` names, else the processor.
pub fn from_environment() -> Result<Device> {
    std::env::var("AMSCRIPT_DEVICE").map_or(Ok(Device::Cpu), |name| named(&name))
}

/// `cpu`, `cuda:0`, `metal:0`.
pub fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}
