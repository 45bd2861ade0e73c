//! What is asked of a card: kernels and products.

use super::card::{self, fault, with_room};
use super::linear::Part;
use super::{Grid, PRELUDE, Unit, Value};
use crate::Array;
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, DevicePtr, LaunchConfig, PushKernelArg, sys};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{CudaDevice, DType, Storage};
use std::ffi::c_void;

#[cfg(test)]
thread_local! {
    static LAUNCHES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Kernels and products that this thread asked for.
#[cfg(test)]
pub(crate) fn launches() -> usize {
    LAUNCHES.get()
}

fn count_launch() {
    #[cfg(test)]
    LAUNCHES.set(LAUNCHES.get() + 1);
}

/// A kernel of a unit, compiled and loaded where it is not yet.
fn function(device: &CudaDevice, unit: &Unit, kernel: &'static str, shared: usize) -> Result<CudaFunction> {
    let card = card::of(device)?;
    let mut functions = card.functions.lock();
    let key = (unit.clone(), kernel);
    if let Some(function) = functions.get(&key) {
        return Ok(function.clone());
    }
    let ptx = card::compiled(card.architecture, unit, || {
        let mut options = unit.defines();
        options.push(format!("--gpu-architecture=compute_{}", card.architecture));
        let text = format!("{PRELUDE}\n{}", unit.file.text());
        let ptx = compile_ptx_with_opts(text, CompileOptions { options, ..Default::default() });
        ptx.map_err(|e| fault(&format!("compiling {unit:?}"), e))
    })?;
    let load = || Ok(device.get_or_load_custom_func(kernel, &format!("{unit:?}"), &ptx.to_src())?.into_cuda_function());
    let function = with_room(device, load)?;
    if shared > 48 << 10 {
        let what = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(what, shared as i32).map_err(|e| fault(kernel, e))?;
    }
    functions.insert(key, function.clone());
    Ok(function)
}

pub(super) fn launch(
    device: &CudaDevice,
    unit: &Unit,
    kernel: &'static str,
    grid: &Grid,
    values: &[Value],
) -> Result<()> {
    count_launch();
    let function = function(device, unit, kernel, grid.shared)?;
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for value in values {
        match value {
            Value::Long(x) => builder.arg(x),
            Value::Int(x) => builder.arg(x),
            Value::Float(x) => builder.arg(x),
        };
    }
    let [x, y, z] = grid.blocks.map(|n| n as u32);
    let threads = (grid.threads[0] as u32, grid.threads[1] as u32, 1);
    let config = LaunchConfig { grid_dim: (x, y, z), block_dim: threads, shared_mem_bytes: grid.shared as u32 };
    // SAFETY: the arguments are those of the kernel's parameters, in order; tensors outlive the work on their stream.
    unsafe { builder.launch(config) }.map_err(|e| fault(kernel, e))?;
    Ok(())
}

pub(super) fn pointer(x: &Array) -> Result<u64> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        bail!(Internal, "kernel: expected a tensor on a CUDA device, got {:?}", x.device());
    };
    let stream = storage.device.cuda_stream();
    let start = match &storage.slice {
        CudaStorageSlice::F32(v) => v.device_ptr(&stream).0,
        CudaStorageSlice::BF16(v) => v.device_ptr(&stream).0,
        CudaStorageSlice::F16(v) => v.device_ptr(&stream).0,
        CudaStorageSlice::U32(v) => v.device_ptr(&stream).0,
        _ => bail!(Internal, "kernel: expected f32, bf16, f16 or u32, got {:?}", x.dtype()),
    };
    Ok(start + (layout.start_offset() * x.dtype().size_in_bytes()) as u64)
}

pub(super) fn multiply(
    device: &CudaDevice,
    (m, k, n): (usize, usize, usize),
    [a, b, c]: [Part; 3],
    batch: usize,
    [factor, keep]: [f64; 2],
) -> Result<()> {
    count_launch();
    let kind = |x: &Array| match x.dtype() {
        DType::BF16 => blas::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => blas::cudaDataType_t::CUDA_R_16F,
        _ => blas::cudaDataType_t::CUDA_R_32F,
    };
    let start = |p: &Part| -> Result<u64> { Ok(pointer(p.of)? + (p.start * p.of.dtype().size_in_bytes()) as u64) };
    // cuBLAS counts by columns: C^T = B^T A^T, and a matrix by rows is its transpose by columns.
    let side = |p: &Part, rows: usize, columns: usize| match p.column {
        1 => (blas::cublasOperation_t::CUBLAS_OP_N, p.row.max(columns).max(1)),
        _ => (blas::cublasOperation_t::CUBLAS_OP_T, p.column.max(rows).max(1)),
    };
    let ((ta, la), (tb, lb)) = (side(&a, m, k), side(&b, k, n));
    let (alpha, beta) = (factor as f32, keep as f32);
    let (pa, pb, pc) = (start(&a)?, start(&b)?, start(&c)?);
    let handle = *device.cublas_handle().handle();
    device.cuda_stream().context().bind_to_thread().map_err(|e| fault("product", e))?;
    let (pa, pb, pc) = (pa as *const c_void, pb as *const c_void, pc as *mut c_void);
    let (factor, keep) = ((&raw const alpha).cast(), (&raw const beta).cast());
    // SAFETY: sizes and distances lie inside the three tensors.
    #[rustfmt::skip]
    let status = unsafe {
        cublas::gemm_strided_batched_ex(
            handle, tb, ta, n as i32, m as i32, k as i32,
            factor, pb, kind(b.of), lb as i32, b.matrix as i64, pa, kind(a.of), la as i32, a.matrix as i64,
            keep, pc, kind(c.of), c.row.max(n) as i32, c.matrix as i64,
            batch as i32, blas::cublasComputeType_t::CUBLAS_COMPUTE_32F, blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    };
    status.map_err(|e| fault(&format!("product [{m}, {k}] [{k}, {n}]"), e))
}
