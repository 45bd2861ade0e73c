//! Chapter `storage`: kinds of number, devices, and tensors in files.

use super::*;
use amscript_nn::archive;
use amscript_tensor::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// Where and how numbers are kept. Files are safetensors.
#[export_module(manifest)]
pub mod storage {
    use super::*;

    /// 32-bit floating point, the kind that states and adjoints have.
    ///
    /// ```rhai
    /// f32()   //=> f32
    /// ```
    pub fn f32() -> DType {
        DType::F32
    }

    /// 64-bit floating point, for checks.
    ///
    /// ```rhai
    /// tensor([1]).to(f64()).dtype   //=> f64
    /// ```
    pub fn f64() -> DType {
        DType::F64
    }

    /// 16-bit floating point with the range of f32, for big models.
    ///
    /// ```rhai
    /// tensor([1]).to(bf16()).dtype   //=> bf16
    /// ```
    pub fn bf16() -> DType {
        DType::BF16
    }

    /// 16-bit floating point.
    ///
    /// ```rhai
    /// tensor([1]).to(f16()).dtype   //=> f16
    /// ```
    pub fn f16() -> DType {
        DType::F16
    }

    /// Unsigned 32-bit integers, for indices.
    ///
    /// ```rhai
    /// tensor([1, 2]).to(u32())   //=> tensor([1, 2])
    /// ```
    pub fn u32() -> DType {
        DType::U32
    }

    /// Signed 64-bit integers.
    ///
    /// ```rhai
    /// tensor([-1]).to(i64())   //=> tensor([-1])
    /// ```
    pub fn i64() -> DType {
        DType::I64
    }

    /// The processor as a place for tensors.
    ///
    /// ```rhai
    /// tensor([1]).to(cpu()).device   //=> cpu
    /// ```
    pub fn cpu() -> Device {
        Device::Cpu
    }

    /// A graphics card as a place for tensors.
    ///
    /// ```rhai no_run
    /// tensor([1]).to(cuda(0)).device   //=> cuda:0
    /// ```
    #[rhai_fn(return_raw)]
    pub fn cuda(card: i64) -> RhaiResultOf<Device> {
        let card = option::convert::<usize>(card.into(), "cuda")?;
        Ok(amscript_tensor::place::named(&format!("cuda:{card}"))?)
    }

    /// The tensors of a safetensors file as an object map.
    ///
    /// ```rhai
    /// save_tensors(#{ a: tensor([1, 2]) }, "few.safetensors");
    /// load_tensors("few.safetensors").a      //=> tensor([1.0, 2.0])
    /// load_tensors("many.safetensors")       //=> error: no file "many.safetensors"
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn load_tensors(context: NativeCallContext, path: &str) -> RhaiResultOf<Map> {
        let session = Session::of(&context);
        let file = session.readable(path).map_err(|e| e.within("load_tensors"))?;
        let read = || -> Result<Map> {
            let archive = archive::Archive::open(&file)?;
            let one =
                |name: &String| Ok((name.into(), Dynamic::from(archive.read(name)?.to_device(session.device())?)));
            archive.entries().keys().map(one).collect()
        };
        Ok(read().map_err(|e| e.within("load_tensors"))?)
    }

    /// Writes the tensors of an object map to a safetensors file in the run's folder.
    ///
    /// ```rhai
    /// save_tensors(#{ a: zeros([2]), b: ones([3]) }, "few.safetensors");
    /// load_tensors("few.safetensors").keys()        //=> ["a", "b"]
    /// save_tensors(#{ a: 1 }, "few.safetensors")    //=> error: save_tensors: `a`: expected a tensor, got 1
    /// save_tensors(#{}, "/few.safetensors")         //=> error: may only write in
    /// save_tensors(#{}, "few.pt")                   //=> error: save_tensors: file must end in .safetensors
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn save_tensors(context: NativeCallContext, tensors: Map, path: &str) -> RhaiResultOf<()> {
        let file = Session::of(&context).writable(path).map_err(|e| e.within("save_tensors"))?;
        archive::check_ending(&file).map_err(|e| e.within("save_tensors"))?;
        let tensors = tensors.iter().map(|(name, x)| named(name, x)).collect::<Result<Vec<_>>>()?;
        let tensors = tensors.iter().map(|(name, x)| (name.as_str(), x));
        Ok(archive::write(&file, tensors, &BTreeMap::new()).map_err(|e| e.within("save_tensors"))?)
    }
}

fn named(name: &str, x: &Dynamic) -> Result<(String, Tensor)> {
    Ok((name.into(), option::convert(x.clone(), &format!("save_tensors: `{name}`"))?))
}
