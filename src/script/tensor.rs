//! Chapter `tensor`: making tensors, their shape, indexing, files.

use super::*;
use amscript_base::memory;
use amscript_tensor::array::{self, Pick};
use amscript_tensor::show;
use std::ops::{Range, RangeInclusive};

/// Tensors are values: every function returns a new one, and all of them let gradients through.
#[export_module(manifest)]
pub mod tensor {
    use super::*;

    pub type Tensor = amscript_tensor::Tensor;
    pub type DType = amscript_tensor::DType;
    pub type Device = amscript_tensor::Device;

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_tensor(x: &mut Tensor) -> String {
        show::show(x)
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_dtype(dtype: &mut DType) -> String {
        dtype.as_str().into()
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_device(device: &mut Device) -> String {
        amscript_tensor::place::name(device)
    }

    /// A tensor of the numbers in a nested array, or of one number, in f32.
    ///
    /// ```rhai
    /// tensor([[1, 2], [3, 4.5]])   //=> tensor([[1.0, 2.0], [3.0, 4.5]])
    /// tensor(2)                    //=> tensor(2.0)
    /// tensor([[1, 2], [3]])        //=> error: tensor: expected rows of equal length
    /// ```
    #[rhai_fn(return_raw)]
    pub fn tensor(context: NativeCallContext, values: Dynamic) -> RhaiResultOf<Tensor> {
        let (shape, mut flat) = (shape_of(&values, array::MOST_RANK + 1), vec![]);
        array::few(shape.len(), "tensor")?;
        gather(values, &shape, &mut flat)?;
        Ok(place(&context, Tensor::from_vec(flat, shape, &amscript_tensor::Device::Cpu))?)
    }

    /// A tensor of zeros.
    ///
    /// ```rhai
    /// zeros([2, 2])            //=> tensor([[0.0, 0.0], [0.0, 0.0]])
    /// zeros([1000000, 1000000])   //=> error: a tensor may have at most
    /// ```
    #[rhai_fn(return_raw)]
    pub fn zeros(context: NativeCallContext, shape: Array) -> RhaiResultOf<Tensor> {
        full(context, shape, 0.0)
    }

    /// A tensor of ones.
    ///
    /// ```rhai
    /// ones([3])   //=> tensor([1.0, 1.0, 1.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn ones(context: NativeCallContext, shape: Array) -> RhaiResultOf<Tensor> {
        full(context, shape, 1.0)
    }

    /// A tensor with one value everywhere.
    ///
    /// ```rhai
    /// full([2], 0.5)   //=> tensor([0.5, 0.5])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn full(context: NativeCallContext, shape: Array, value: f64) -> RhaiResultOf<Tensor> {
        let shape = option::list::<usize>(shape, "shape")?;
        array::affordable(&shape, "full")?;
        Ok(place(&context, Tensor::full(value as f32, shape, &amscript_tensor::Device::Cpu))?)
    }

    /// The numbers from 0 up to, but not including, `n`.
    ///
    /// ```rhai
    /// arange(4)   //=> tensor([0.0, 1.0, 2.0, 3.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn arange(context: NativeCallContext, n: i64) -> RhaiResultOf<Tensor> {
        let count = array::affordable(&[option::convert(n.into(), "arange")?], "arange")?;
        memory::room(memory::bytes(&[count], size_of::<f32>()), || format!("arange of {count}"))?;
        Ok(place(
            &context,
            Tensor::from_vec((0..count).map(|i| i as f32).collect(), count, &amscript_tensor::Device::Cpu),
        )?)
    }

    /// `n` numbers from `start` to `end`, both included.
    ///
    /// ```rhai
    /// linspace(0, 1, 5)   //=> tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn linspace(context: NativeCallContext, start: f64, end: f64, n: i64) -> RhaiResultOf<Tensor> {
        let n = array::affordable(&[option::convert(n.into(), "linspace")?], "linspace")?;
        Ok(array::linspace(start, end, n, amscript_tensor::DType::F32, Session::of(&context).device())?)
    }

    /// The identity matrix.
    ///
    /// ```rhai
    /// eye(2)   //=> tensor([[1.0, 0.0], [0.0, 1.0]])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn eye(context: NativeCallContext, n: i64) -> RhaiResultOf<Tensor> {
        let n = option::convert::<usize>(n.into(), "eye")?;
        array::affordable(&[n, n], "eye")?;
        Ok(place(&context, Tensor::eye(n, amscript_tensor::DType::F32, &amscript_tensor::Device::Cpu))?)
    }

    /// Tensors one after the other along an existing dimension.
    ///
    /// ```rhai
    /// cat([tensor([1]), tensor([2, 3])], 0)   //=> tensor([1.0, 2.0, 3.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn cat(tensors: Array, dim: i64) -> RhaiResultOf<Tensor> {
        let tensors = several(tensors, "cat")?;
        Ok(Tensor::cat(&tensors, array::dimension(&tensors[0], dim, "cat")?)?)
    }

    /// Tensors of one shape side by side along a new dimension.
    ///
    /// ```rhai
    /// stack([tensor([1, 2]), tensor([3, 4])], 0)   //=> tensor([[1.0, 2.0], [3.0, 4.0]])
    /// stack([tensor([1, 2]), tensor([3, 4])], -1)  //=> tensor([[1.0, 3.0], [2.0, 4.0]])
    /// stack([], 0)                                 //=> error: stack: expected at least one tensor
    /// ```
    #[rhai_fn(return_raw)]
    pub fn stack(tensors: Array, dim: i64) -> RhaiResultOf<Tensor> {
        let tensors = several(tensors, "stack")?;
        Ok(Tensor::stack(&tensors, array::new_dimension(&tensors[0], dim, "stack")?)?)
    }

    /// The sizes of the dimensions.
    ///
    /// ```rhai
    /// zeros([2, 3]).shape   //=> [2, 3]
    /// ```
    #[rhai_fn(get = "shape", pure)]
    pub fn shape(x: &mut Tensor) -> Array {
        x.dims().iter().map(|&n| Dynamic::from(n as i64)).collect()
    }

    /// The kind of number: `f32()`, `f64()`, `bf16()`, ...
    ///
    /// ```rhai
    /// zeros([2]).dtype   //=> f32
    /// ```
    #[rhai_fn(get = "dtype", pure)]
    pub fn dtype(x: &mut Tensor) -> DType {
        x.dtype()
    }

    /// Where the numbers are: `cpu` or `cuda:0`.
    ///
    /// ```rhai
    /// zeros([2]).device   //=> cpu
    /// ```
    #[rhai_fn(get = "device", pure)]
    pub fn device(x: &mut Tensor) -> Device {
        x.device().clone()
    }

    /// One entry along the first dimension, counted from the end when negative.
    ///
    /// An array gives one position per dimension: an integer, a range, or an array of entries; `..` is everything.
    ///
    /// ```rhai
    /// let x = tensor([[1, 2, 3], [4, 5, 6]]);
    /// x[1]               //=> tensor([4.0, 5.0, 6.0])
    /// x[-1][0]           //=> tensor(4.0)
    /// x[[0, 1..3]]       //=> tensor([2.0, 3.0])
    /// x[[0..2, 0]]       //=> tensor([1.0, 4.0])
    /// x[[0, [2, 0]]]     //=> tensor([3.0, 1.0])
    /// x[0..1]            //=> tensor([[1.0, 2.0, 3.0]])
    /// x[2]               //=> error: dimension 0 has 2 entries, got index 2
    /// ```
    #[rhai_fn(index_get, pure, return_raw)]
    pub fn at(x: &mut Tensor, i: i64) -> RhaiResultOf<Tensor> {
        Ok(array::index(x, &[Pick::At(i)])?)
    }

    #[rhai_fn(index_get, pure, return_raw)]
    pub fn at_range(x: &mut Tensor, range: Range<i64>) -> RhaiResultOf<Tensor> {
        Ok(array::index(x, &[Pick::Range(range.start, range.end)])?)
    }

    #[rhai_fn(index_get, pure, return_raw)]
    pub fn at_closed_range(x: &mut Tensor, range: RangeInclusive<i64>) -> RhaiResultOf<Tensor> {
        Ok(array::index(x, &[Pick::Range(*range.start(), behind(*range.end()))])?)
    }

    #[rhai_fn(index_get, pure, return_raw)]
    pub fn at_each(x: &mut Tensor, positions: Array) -> RhaiResultOf<Tensor> {
        let picks = positions.into_iter().map(pick).collect::<Result<Vec<_>>>()?;
        Ok(array::index(x, &picks)?)
    }

    /// The same numbers in another shape; one -1 stands for what is left.
    ///
    /// ```rhai
    /// arange(6).reshape([2, -1]).shape   //=> [2, 3]
    /// arange(6).reshape([4, -1])         //=> error: reshape: expected a shape of 6 values
    /// ```
    #[rhai_fn(return_raw)]
    pub fn reshape(x: Tensor, shape: Array) -> RhaiResultOf<Tensor> {
        let shape = option::list::<i64>(shape, "reshape")?;
        Ok(x.reshape(array::fill_shape(x.elem_count(), &shape)?)?)
    }

    /// All numbers in one dimension.
    ///
    /// ```rhai
    /// zeros([2, 3]).flatten().shape   //=> [6]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn flatten(x: Tensor) -> RhaiResultOf<Tensor> {
        Ok(x.flatten_all()?)
    }

    /// Two dimensions exchanged.
    ///
    /// ```rhai
    /// tensor([[1, 2]]).transpose(0, 1)   //=> tensor([[1.0], [2.0]])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn transpose(x: Tensor, a: i64, b: i64) -> RhaiResultOf<Tensor> {
        Ok(x.transpose(array::dimension(&x, a, "transpose")?, array::dimension(&x, b, "transpose")?)?)
    }

    /// The dimensions in another order.
    ///
    /// ```rhai
    /// zeros([2, 3, 4]).permute([2, 0, 1]).shape   //=> [4, 2, 3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn permute(x: Tensor, order: Array) -> RhaiResultOf<Tensor> {
        let order = option::list::<usize>(order, "permute")?;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if sorted != (0..x.rank()).collect::<Vec<_>>() {
            let error = Error::new(
                Kind::Shape,
                format!("permute: expected each of {} dimensions once, got {order:?}", x.rank()),
            );
            return Err(error.into());
        }
        Ok(x.permute(order)?)
    }

    /// `length` entries of a dimension, from `start` on.
    ///
    /// ```rhai
    /// arange(5).narrow(0, 1, 3)   //=> tensor([1.0, 2.0, 3.0])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn narrow(x: Tensor, dim: i64, start: i64, length: i64) -> RhaiResultOf<Tensor> {
        let (start, length) = (option::convert(start.into(), "narrow")?, option::convert(length.into(), "narrow")?);
        Ok(x.narrow(array::dimension(&x, dim, "narrow")?, start, length)?)
    }

    /// A new dimension of size one, which is dimension `dim` of the result.
    ///
    /// ```rhai
    /// arange(3).unsqueeze(0).shape    //=> [1, 3]
    /// arange(3).unsqueeze(-1).shape   //=> [3, 1]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn unsqueeze(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(x.unsqueeze(array::new_dimension(&x, dim, "unsqueeze")?)?)
    }

    /// Without a dimension of size one.
    ///
    /// ```rhai
    /// zeros([1, 3]).squeeze(0).shape   //=> [3]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn squeeze(x: Tensor, dim: i64) -> RhaiResultOf<Tensor> {
        Ok(x.squeeze(array::dimension(&x, dim, "squeeze")?)?)
    }

    /// The numbers repeated to a larger shape that they broadcast to.
    ///
    /// ```rhai
    /// tensor([1, 2]).broadcast([2, 2])   //=> tensor([[1.0, 2.0], [1.0, 2.0]])
    /// ```
    #[rhai_fn(return_raw)]
    pub fn broadcast(x: Tensor, shape: Array) -> RhaiResultOf<Tensor> {
        let shape = option::list::<usize>(shape, "broadcast")?;
        array::affordable(&shape, "broadcast")?;
        Ok(x.broadcast_as(shape)?)
    }

    /// The only number of a tensor.
    ///
    /// ```rhai
    /// tensor([2.5]).item()    //=> 2.5
    /// zeros([2]).item()       //=> error: item: expected one value, got shape [2]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn item(x: Tensor) -> RhaiResultOf<Dynamic> {
        Ok(entry(array::item(&x)?, x.dtype()))
    }

    /// The numbers as a nested array; those of integers are integers.
    ///
    /// ```rhai
    /// tensor([[1, 2], [3, 4]]).to_array()         //=> [[1.0, 2.0], [3.0, 4.0]]
    /// tensor([[1, 5], [9, 4]]).argmax(1).to_array()   //=> [1, 0]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn to_array(x: Tensor) -> RhaiResultOf<Dynamic> {
        let held = x.dims().iter().scan(1_usize, |n, size| {
            *n = n.saturating_mul(*size);
            Some(*n)
        });
        if held.max().is_some_and(|n| n > MOST_ITEMS) {
            let message = format!("to_array: expected at most {MOST_ITEMS} entries, got shape {:?}", x.dims());
            return Err(Error::new(Kind::Limit, message).hint("take a part of it, or reduce it first").into());
        }
        Ok(nest(&show::values(&x)?, x.dims(), x.dtype()))
    }

    /// The tensor with another kind of number, on another device, or like another tensor in both.
    ///
    /// ```rhai
    /// zeros([2]).to(f64()).dtype                  //=> f64
    /// zeros([2]).to(zeros([1]).to(bf16())).dtype  //=> bf16
    /// ```
    #[rhai_fn(name = "to", return_raw)]
    pub fn to_dtype(x: Tensor, dtype: DType) -> RhaiResultOf<Tensor> {
        Ok(x.to_dtype(dtype)?)
    }

    #[rhai_fn(name = "to", return_raw)]
    pub fn to_device(x: Tensor, device: Device) -> RhaiResultOf<Tensor> {
        Ok(x.to_device(&device)?)
    }

    #[rhai_fn(name = "to", return_raw)]
    pub fn to_like(x: Tensor, other: Tensor) -> RhaiResultOf<Tensor> {
        Ok(x.to_dtype(other.dtype()).and_then(|x| x.to_device(other.device()))?)
    }
}

/// Moves a tensor made on the CPU to the session's device.
fn place(context: &NativeCallContext, x: amscript_base::error::Result<tensor::Tensor>) -> Result<tensor::Tensor> {
    x?.to_device(Session::of(context).device())
}

fn several(tensors: Array, function: &str) -> Result<Vec<tensor::Tensor>> {
    let tensors = option::list::<tensor::Tensor>(tensors, function)?;
    if tensors.is_empty() {
        amscript_base::bail!(Value, "{function}: expected at least one tensor, got an empty array");
    }
    Ok(tensors)
}

/// The shape that a nested array has if its rows are of equal length, so many dimensions deep.
fn shape_of(values: &Dynamic, depth: usize) -> Vec<usize> {
    match values.read_lock::<Array>() {
        Some(items) if depth > 0 => {
            let inner = items.first().map(|first| shape_of(first, depth - 1)).unwrap_or_default();
            [items.len()].into_iter().chain(inner).collect()
        }
        _ => vec![],
    }
}

/// Appends the numbers of a nested array of that shape.
fn gather(values: Dynamic, shape: &[usize], flat: &mut Vec<f32>) -> Result<()> {
    let values = values.flatten();
    let (Some((&n, rest)), true) = (shape.split_first(), values.is_array()) else {
        let number = option::convert::<f64>(values, "tensor")?;
        if !shape.is_empty() {
            amscript_base::bail!(
                Shape,
                "tensor: expected rows of equal length, got a number beside a row of {}",
                shape[0]
            );
        }
        flat.push(number as f32);
        return Ok(());
    };
    let items: Array = values.into_array().unwrap_or_default();
    if items.len() != n {
        amscript_base::bail!(Shape, "tensor: expected rows of equal length, got {n} and {} entries", items.len());
    }
    items.into_iter().try_for_each(|item| gather(item, rest, flat))
}

/// Entries that an array of a script may have.
pub const MOST_ITEMS: usize = 1 << 22;

fn nest(values: &[f64], dims: &[usize], dtype: amscript_tensor::DType) -> Dynamic {
    let Some((&n, rest)) = dims.split_first() else {
        return entry(values[0], dtype);
    };
    let size = values.len() / n.max(1);
    (0..n).map(|i| nest(&values[i * size..(i + 1) * size], rest, dtype)).collect::<Array>().into()
}

/// A number of a tensor as scripts hold it.
fn entry(value: f64, dtype: amscript_tensor::DType) -> Dynamic {
    if dtype.is_int() { Dynamic::from(value as i64) } else { value.into() }
}

/// The end of an inclusive range as that of an open one; -1 is the last.
fn behind(last: i64) -> i64 {
    if last == -1 { i64::MAX } else { last.saturating_add(1) }
}

/// An entry of `x[[..]]`.
fn pick(value: Dynamic) -> Result<Pick> {
    let value = value.flatten();
    if let Some(range) = value.read_lock::<Range<i64>>() {
        return Ok(Pick::Range(range.start, range.end));
    }
    if let Some(range) = value.read_lock::<RangeInclusive<i64>>() {
        return Ok(Pick::Range(*range.start(), behind(*range.end())));
    }
    if value.is_array() {
        return Ok(Pick::These(option::list(value.into_array().unwrap_or_default(), "index")?));
    }
    match value.as_int() {
        Ok(i) => Ok(Pick::At(i)),
        Err(_) => amscript_base::bail!(
            Type,
            "index: expected an integer, a range or an array of integers, got {}",
            option::show(&value)
        ),
    }
}
