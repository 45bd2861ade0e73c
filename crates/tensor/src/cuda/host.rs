//! The kernels on the host: compiled by g++ with `host.h`, which runs threads as fibers. For tests, and where there is a compiler.

use super::linear::Part;
use super::{File, Grid, PRELUDE, Unit, Value};
use crate::Array;
use amscript_base::bail;
use amscript_base::error::Result;
use candle_core::{CpuStorage, Storage};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static LAUNCHES: Cell<usize> = const { Cell::new(0) };
}

/// Kernels and products run by this thread.
pub fn launches() -> usize {
    LAUNCHES.get()
}

pub fn on() -> bool {
    ON.get()
}

/// `f` with the CUDA paths of ops taken by tensors on the processor; nothing where there is no g++.
pub fn emulate<T>(f: impl FnOnce() -> T) -> Option<T> {
    static COMPILER: LazyLock<bool> = LazyLock::new(|| Command::new("g++").arg("--version").output().is_ok());
    if !*COMPILER {
        return None;
    }
    ON.set(true);
    let value = f();
    ON.set(false);
    Some(value)
}

type Invoke = unsafe extern "C" fn(*const c_char, *mut *mut c_void, *const u32, *const u32, u32) -> c_int;

/// Compiled units; the lock also keeps kernels from running at the same time, for their shared memory is static.
static UNITS: LazyLock<Mutex<HashMap<Unit, Invoke>>> = LazyLock::new(Mutex::default);

pub(super) fn launch(unit: &Unit, kernel: &str, grid: &Grid, values: &[Value]) -> Result<()> {
    LAUNCHES.set(LAUNCHES.get() + 1);
    let mut units = UNITS.lock().unwrap_or_else(|e| e.into_inner());
    if !units.contains_key(unit) {
        units.insert(unit.clone(), compile(unit)?);
    }
    let (invoke, name) = (units[unit], CString::new(kernel).unwrap());
    let mut args: Vec<*mut c_void> = values
        .iter()
        .map(|value| match value {
            Value::Long(x) => std::ptr::from_ref(x) as *mut c_void,
            Value::Int(x) => std::ptr::from_ref(x) as *mut c_void,
            Value::Float(x) => std::ptr::from_ref(x) as *mut c_void,
        })
        .collect();
    let (blocks, threads) = (grid.blocks.map(|n| n as u32), grid.threads.map(|n| n as u32));
    // SAFETY: the kernel's parameters are those that the driver would get.
    let status =
        unsafe { invoke(name.as_ptr(), args.as_mut_ptr(), blocks.as_ptr(), threads.as_ptr(), grid.shared as u32) };
    if status != values.len() as c_int {
        bail!(Internal, "{kernel}: expected {} arguments, got {status}", values.len());
    }
    Ok(())
}

fn compile(unit: &Unit) -> Result<Invoke> {
    let folder = std::env::temp_dir().join(format!("amscript-kernels-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = unit.file.text();
    let names: Vec<&str> = text.split("__global__ void ").skip(1).filter_map(|t| t.split('(').next()).collect();
    let calls: String = names
        .iter()
        .map(|n| format!("if (!strcmp(name, \"{n}\")) return call({n}, args, grid, threads, shared);\n"))
        .collect();
    let mma = if unit.file == File::Attention { include_str!("kernels/host_mma.h") } else { "" };
    let source = format!(
        "{}\n{PRELUDE}\n{mma}\n{text}\nextern \"C\" int invoke(const char *name, void **args, const unsigned *grid, const unsigned *threads, unsigned shared) {{\n{calls}return -1;\n}}\n",
        include_str!("kernels/host.h")
    );
    let [t, w] = unit.types.map(|t| t.as_str());
    let stem = format!("{:?}-{t}-{w}-{}-{}", unit.file, unit.pack, unit.head);
    let (from, to) = (folder.join(format!("{stem}.cpp")), folder.join(format!("{stem}.so")));
    std::fs::write(&from, source).unwrap();
    // A misaligned access ends the process, as it ends the work of a card.
    let checked = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"];
    let flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-w", checked[0], checked[1], "-o"];
    let run = Command::new("g++").args(flags).arg(&to).arg(&from).args(unit.defines()).output().unwrap();
    if !run.status.success() {
        bail!(Internal, "{stem}: {}", String::from_utf8_lossy(&run.stderr));
    }
    let path = CString::new(to.display().to_string()).unwrap();
    // SAFETY: the library was just built with this function, and is never closed.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        let invoke = if library.is_null() { library } else { libc::dlsym(library, c"invoke".as_ptr()) };
        if invoke.is_null() {
            bail!(Internal, "{stem}: the library must open and hold `invoke`");
        }
        Ok(std::mem::transmute::<*mut c_void, Invoke>(invoke))
    }
}

pub fn pointer(x: &Array) -> Result<u64> {
    let (storage, layout) = x.storage_and_layout();
    let start = match &*storage {
        Storage::Cpu(CpuStorage::F32(v)) => v.as_ptr() as u64,
        Storage::Cpu(CpuStorage::BF16(v)) => v.as_ptr() as u64,
        Storage::Cpu(CpuStorage::F16(v)) => v.as_ptr() as u64,
        Storage::Cpu(CpuStorage::U32(v)) => v.as_ptr() as u64,
        _ => bail!(Internal, "kernel: expected f32, bf16, f16 or u32, got {:?}", x.dtype()),
    };
    Ok(start + (layout.start_offset() * x.dtype().size_in_bytes()) as u64)
}

/// What cuBLAS computes, one number at a time.
pub fn multiply(
    (m, k, n): (usize, usize, usize),
    a: Part,
    b: Part,
    c: Part,
    batch: usize,
    [factor, keep]: [f64; 2],
) -> Result<()> {
    let values = |x: &Array| -> Result<Vec<f32>> {
        let (storage, layout) = x.storage_and_layout();
        let all = match &*storage {
            Storage::Cpu(CpuStorage::F32(v)) => v.clone(),
            Storage::Cpu(CpuStorage::BF16(v)) => v.iter().map(|x| x.to_f32()).collect(),
            Storage::Cpu(CpuStorage::F16(v)) => v.iter().map(|x| x.to_f32()).collect(),
            _ => bail!(Internal, "multiply: expected floats"),
        };
        Ok(all[layout.start_offset()..].to_vec())
    };
    LAUNCHES.set(LAUNCHES.get() + 1);
    let (x, y, old, to) = (values(a.of)?, values(b.of)?, values(c.of)?, pointer(c.of)?);
    let size = c.of.dtype().size_in_bytes();
    for i in 0..batch {
        let at = |p: &Part, row: usize, column: usize| p.start + i * p.matrix + row * p.row + column * p.column;
        for row in 0..m {
            let number = |column: usize| {
                let sum: f32 = (0..k).map(|j| x[at(&a, row, j)] * y[at(&b, j, column)]).sum();
                let before = if keep == 0.0 { 0.0 } else { keep as f32 * old[at(&c, row, column)] };
                factor as f32 * sum + before
            };
            let line: Vec<f32> = (0..n).map(number).collect();
            let line = Array::from_vec(line, n, c.of.device())?.to_dtype(c.of.dtype())?;
            let place = to as usize + at(&c, row, 0) * size;
            // SAFETY: the row lies inside the output, which no one else uses meanwhile.
            unsafe { std::ptr::copy_nonoverlapping(pointer(&line)? as *const u8, place as *mut u8, n * size) };
        }
    }
    Ok(())
}
