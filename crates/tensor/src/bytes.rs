//! Numbers as bytes, little end first, as they go from process to process.

use crate::{Array, DType, Device, Tensor};
use amscript_base::bail;
use amscript_base::error::Result;

/// The numbers of an f32 or f64 tensor, row by row; waits for its device.
pub fn of(x: &Tensor) -> Result<Vec<u8>> {
    let flat = x.constant().flatten_all()?;
    match x.dtype() {
        DType::F32 => Ok(flat.to_vec1::<f32>()?.iter().flat_map(|n| n.to_le_bytes()).collect()),
        DType::F64 => Ok(flat.to_vec1::<f64>()?.iter().flat_map(|n| n.to_le_bytes()).collect()),
        other => bail!(Dtype, "bytes: numbers must be f32 or f64, got {other:?}"),
    }
}

/// The tensor of such bytes, on the processor.
pub fn read(bytes: &[u8], dtype: DType, dims: &[usize]) -> Result<Tensor> {
    let wanted = dims.iter().product::<usize>() * dtype.size_in_bytes();
    if bytes.len() != wanted {
        bail!(Shape, "bytes: there must be {wanted} for {dims:?} of {dtype:?}, got {}", bytes.len());
    }
    Ok(Array::from_raw_buffer(bytes, dtype, dims, &Device::Cpu).map(Tensor::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for dtype in [DType::F32, DType::F64] {
            let x = Tensor::new(&[[0.1f64, -2.0], [1e30, f64::NAN]], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let bytes = of(&x).unwrap();
            assert_eq!(of(&read(&bytes, dtype, &[2, 2]).unwrap()).unwrap(), bytes);
            assert!(read(&bytes, dtype, &[3]).is_err());
        }
    }
}
