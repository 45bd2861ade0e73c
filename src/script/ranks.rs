//! Chapter `ranks`: batches in parts, by one process or by several that work together.

use super::method::{Batch, Update, apart};
use super::*;
use crate::{options, script_value};
use amscript_align::{self as solver, Cut, Share};
use amscript_base::context::Context;
use amscript_base::group::{pack, unpack};
use amscript_tensor::{Tensor, bytes};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

script_value!(Share, "a share of a batch, such as `share(16)`");

options! {
    /// How a batch is cut.
    pub struct ShareOptions {
        /// Samples of a prompt, which stay together.
        per_prompt: usize = 1,
        /// Most samples at a time; () means no bound.
        micro_batch: Option<usize> = None,
    }
}

/// How a batch is parted, over whom, for these trained numbers; none where it is in one piece.
pub fn cut(share: Option<&Share>, variables: impl FnOnce() -> Result<Vec<Tensor>>) -> Result<Option<Arc<Cut>>> {
    let Some(share) = share.filter(|share| !share.is_whole()) else { return Ok(None) };
    Ok(Some(Arc::new(Cut { share: share.clone(), group: Context::current().group(), variables: variables()? })))
}

/// What all ranks gave, in rank order.
fn gathered(own: Result<Vec<u8>>) -> Result<Vec<u8>> {
    let context = Context::current();
    context.shares.store(true, Ordering::Relaxed);
    Ok(context.group().agree("gather", own)?.concat())
}

/// What a closure found of a batch, as an update: `loss`, `reward`, and numbers that were measured.
fn found(mut map: Map) -> Result<solver::Update> {
    let mut need = |name: &str| {
        let missing = || Error::new(Kind::Missing, format!("in_parts: the closure must give `{name}`, got none"));
        option::convert::<Tensor>(map.remove(name).ok_or_else(missing)?, &format!("in_parts: `{name}`"))
    };
    let update = solver::Update::new(need("loss")?, &need("reward")?);
    let measured = map.into_iter().map(|(name, value)| {
        let place = format!("in_parts: `{name}`");
        let tensor = value.clone().try_cast::<Tensor>().map_or_else(
            || Tensor::new(option::convert::<f64>(value, &place)?, &amscript_tensor::Device::Cpu),
            |tensor| Ok(tensor.constant()),
        );
        Ok((name.to_string(), tensor?))
    });
    Ok(solver::Update { measured: measured.collect::<Result<BTreeMap<_, _>>>()?, ..update })
}

/// Batches in parts, and processes that work on one run together: `mpirun -n 4 amscript ..`.
#[export_module(manifest)]
pub mod ranks {
    use super::*;

    pub type Share = amscript_align::Share;

    /// Which process this is of those that work together, from 0.
    ///
    /// ```rhai
    /// [rank(), ranks()]   //=> [0, 1]
    /// ```
    #[rhai_fn(volatile)]
    pub fn rank() -> i64 {
        Context::current().group().rank() as i64
    }

    /// How many processes work together; 1 without `mpirun` or `srun`.
    ///
    /// ```rhai
    /// ranks()   //=> 1
    /// ```
    #[rhai_fn(name = "ranks", volatile)]
    pub fn count() -> i64 {
        Context::current().group().size() as i64
    }

    /// The samples of a batch that this process takes, and how many at a time: for `batch`, as its `share`.
    ///
    /// A batch is cut into parts of about the same size, one for each process, more where `micro_batch` asks for it. Updates give the same
    /// bytes whoever takes the parts; how many there are changes last digits.
    ///
    /// ```rhai
    /// let own = share(8, #{ micro_batch: 4 });
    /// [own.first, own.len]              //=> [0, 8]
    /// own                               //=> share(samples 0..8 of 8, in 2 of 2 parts)
    /// share(8, #{ per_prompt: 3 })      //=> error: the samples of a prompt must divide the batch of 8, got 3
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn share(samples: i64, options: Map) -> RhaiResultOf<Share> {
        let options = ShareOptions::parse("share", options)?;
        let samples = option::convert(samples.into(), "share")?;
        Ok(Share::new(samples, options.per_prompt, options.micro_batch, &*Context::current().group())?)
    }

    /// The first sample of a share.
    ///
    /// ```rhai
    /// share(8).first   //=> 0
    /// ```
    #[rhai_fn(get = "first", pure)]
    pub fn first(share: &mut Share) -> i64 {
        share.rows(&share.own()).first as i64
    }

    /// How many samples a share has.
    ///
    /// ```rhai
    /// share(8).len   //=> 8
    /// ```
    #[rhai_fn(get = "len", pure)]
    pub fn len(share: &mut Share) -> i64 {
        share.rows(&share.own()).len as i64
    }

    /// One update by a closure, part by part of a batch that has a `share`: gradients are added, as `method.update` does it.
    ///
    /// The closure gets a part as a batch and gives `loss`, the mean over its samples, `reward` `[samples]`, and what is to be logged,
    /// as means too. `params` are the trained numbers. Draw from `part.rng`, so that a sample has the same noise in any part.
    ///
    /// ```rhai
    /// let w = param(tensor([1.0]));
    /// let b = batch(tensor([[1.0], [2.0], [6.0]]), (), terminal_cost(|x| x.sum(1)), #{ share: share(3, #{ micro_batch: 1 }) });
    /// let update = in_parts(b, w, |part| #{ loss: (part.x0 * w).mean(), reward: part.x0.squeeze(1), most: part.x0.max() });
    /// gradients(update.loss, [w])[0].to_array()                 //=> [3.0]
    /// [update.reward.to_array(), update.measured.most.item()]   //=> [[1.0, 2.0, 6.0], 3.0]
    /// in_parts(b, w, |part| #{ loss: w.sum() })                 //=> error: the closure must give `reward`, got none
    /// ```
    #[rhai_fn(return_raw)]
    pub fn in_parts(context: NativeCallContext, batch: Batch, params: Dynamic, update: FnPtr) -> RhaiResultOf<Update> {
        let (callback, session) = (Callback::new(&context, "in_parts", update), Session::of(&context));
        let variables = || Ok(optim::params(params, "in_parts")?.tensors());
        let cut = cut(batch.options.share.as_ref(), variables)?.filter(|_| session.planner().is_none());
        let found = |batch: &Batch| found(callback.call::<Map>((batch.clone(),))?);
        let update = apart(&session, &batch.options.clone(), |_| match &cut {
            None => found(&batch),
            Some(cut) => batch.core()?.in_parts(cut, &|part| found(&batch.part(part, cut)?)),
        })?;
        Ok(Update::of(update, None))
    }

    /// The rows `[n, ..]` of all processes, one behind the other; or their texts.
    ///
    /// ```rhai
    /// gather(tensor([1.0, 2.0])).to_array()   //=> [1.0, 2.0]
    /// gather(["a ring", "a square"])          //=> ["a ring", "a square"]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn gather(rows: Tensor) -> RhaiResultOf<Tensor> {
        let mut dims = rows.dims().to_vec();
        let Some((length, row)) = dims.split_first_mut() else {
            return Err(Error::new(Kind::Shape, "gather: there must be rows, got a single number").into());
        };
        if count() == 1 {
            return Ok(rows);
        }
        let all = gathered(bytes::of(&rows))?;
        *length = all.len() / (row.iter().product::<usize>().max(1) * rows.dtype().size_in_bytes());
        Ok(bytes::read(&all, rows.dtype(), &dims)?.to_device(rows.device())?)
    }

    #[rhai_fn(name = "gather", return_raw)]
    pub fn gather_texts(texts: Array) -> RhaiResultOf<Array> {
        let own = option::list::<String>(texts, "gather")?;
        let all = unpack(&gathered(Ok(pack(own)))?)?
            .into_iter()
            .map(|text| Dynamic::from(String::from_utf8_lossy(&text).to_string()));
        Ok(all.collect())
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_share(share: &mut Share) -> String {
        share.to_string()
    }
}
