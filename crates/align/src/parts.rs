//! One update of a batch that is cut into parts, by one process or by several.
//!
//! As data, of `P` parts, of which rank `r` has some ([`Share`]):
//!
//! 1. Each part is the batch's rows with the noise that they have in the batch ([`Batch::in_parts`]). Its update gives losses and rewards.
//! 2. What a method must know of the whole batch, such as all rewards for advantages, it asks for ([`Batch::whole`]). A process with
//!    one part waits for the others there. One with several begins them again with the answer, so that no two graphs are held at once.
//! 3. A part's loss, times its samples, is differentiated, and its graph is gone. The gradients of a rank's parts are added in pairs.
//! 4. All ranks say that they came so far, or that they did not: an error of one is an error of all. They tell losses, rewards, measured.
//! 5. The gradients of all ranks are added on the host, in the order of the parts; the sum goes to all, over the number of samples.
//! 6. The update's loss has the mean as its value and the sum as its gradient. The optimizer's step is the same on every rank, or each
//!    takes its share of it (`optim/shard.rs`).

use super::cost::TerminalCost;
use super::method::{Batch, Method, MethodState, Next, Update, update};
use super::share::{Share, Sum, nodes_of};
use crate::flow::Velocity;
use amscript_base::bail;
use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::group::{Group, pack, unpack};
use amscript_base::profile::phase;
use amscript_tensor::check::read;
use amscript_tensor::grad::{custom_vjp, pullback};
use amscript_tensor::{DType, Device, Rows, Tensor, bytes};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A part of a batch, as the batch of an update knows it.
#[derive(Clone)]
pub struct Part {
    /// Which of the batch's parts.
    index: usize,
    pub rows: Rows,
    asks: Arc<Asks>,
}

/// What parts of a batch ask of one another.
struct Asks {
    group: Arc<dyn Group>,
    /// Whether this process has no other part.
    single: bool,
    state: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    /// What all parts gave, question by question.
    answers: Vec<Vec<Vec<u8>>>,
    /// The question that the running part comes to next.
    next: usize,
    /// What the parts of this process gave to the first question without an answer.
    given: Vec<Vec<u8>>,
    /// An error of all ranks.
    ended: Option<Error>,
}

/// What a rank comes to a meeting with: its parts ask, or are done.
const ASKS: &[u8] = b"asks";
const DONE: &[u8] = b"done";

impl Asks {
    fn ask(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut state = self.state.lock();
        state.next += 1;
        if let Some(known) = state.answers.get(state.next - 1) {
            return Ok(known.clone());
        }
        state.given.push(own.to_vec());
        if self.single {
            drop(state);
            self.meet(Ok(ASKS))?;
            return self.state.lock().answers.last().cloned().ok_or_else(waits);
        }
        Err(waits())
    }

    /// All ranks say how far they came; what they were asked for is then known.
    fn meet(&self, own: Result<&[u8]>) -> Result<Vec<Vec<u8>>> {
        let given = std::mem::take(&mut self.state.lock().given);
        let all = phase("waiting", || self.group.agree("update", own.map(|what| pack([what, &pack(&given)]))));
        let all = all.inspect_err(|error| self.state.lock().ended = Some(error.clone()))?;
        let all = all.iter().map(|bytes| unpack(bytes)).collect::<Result<Vec<_>>>()?;
        if all.iter().any(|given| given[0] != all[0][0]) {
            bail!(Value, "update: all parts of a batch must ask alike, got some that are done before others");
        }
        let found = all.iter().map(|given| unpack(&given[1])).collect::<Result<Vec<_>>>()?.concat();
        if all[0][0] == ASKS {
            self.state.lock().answers.push(found.clone());
        }
        Ok(found)
    }
}

/// On the way out of a part that begins again with the answer.
fn waits() -> Error {
    Error::new(Kind::Internal, "update: a part of a batch waits for the others")
}

/// A batch that is cut, who works on it, and the trained numbers.
pub struct Cut {
    pub share: Share,
    pub group: Arc<dyn Group>,
    pub variables: Vec<Tensor>,
}

/// What was found of the parts of this process.
struct Found {
    sum: Sum<Vec<Tensor>>,
    /// Losses, rewards and what was measured, a part each.
    numbers: Vec<Vec<u8>>,
    updates: Vec<Update>,
}

impl Cut {
    /// Samples of the largest part of this process.
    pub fn largest(&self) -> usize {
        self.share.own().map(|part| self.share.rows(&(part..part + 1)).len).max().unwrap_or_default()
    }

    /// One update, of the updates that `run` gives of the parts; the losses of each must be means over its samples.
    pub fn update(self: &Arc<Self>, run: &dyn Fn(Part) -> Result<Update>) -> Result<Update> {
        Context::current().shares.store(true, Ordering::Relaxed);
        let single = self.share.own().len() == 1;
        let asks = Arc::new(Asks { group: self.group.clone(), single, state: Mutex::default() });
        loop {
            let found = self.found(&asks, run);
            if let Some(error) = asks.state.lock().ended.take() {
                return Err(error);
            }
            let own = match &found {
                Ok(Some(found)) => {
                    asks.state.lock().given = found.numbers.clone();
                    Ok(DONE)
                }
                Ok(None) => Ok(ASKS),
                Err(error) => Err(error.clone()),
            };
            let numbers = asks.meet(own)?;
            if let Some(found) = found? {
                return self.whole(found, &numbers);
            }
        }
    }

    /// The updates of the parts of this process, differentiated; none where they ask.
    fn found(&self, asks: &Arc<Asks>, run: &dyn Fn(Part) -> Result<Update>) -> Result<Option<Found>> {
        let mut found = Found { sum: Sum::new(add), numbers: Vec::new(), updates: Vec::new() };
        for part in self.share.own() {
            asks.state.lock().next = 0;
            let (rows, waiting) = (self.share.rows(&(part..part + 1)), asks.state.lock().given.len());
            match run(Part { index: part, rows, asks: asks.clone() }) {
                Ok(update) => {
                    let (loss, weight) = (update.loss()?, update.weight.unwrap_or(rows.len as f64));
                    let gradients = phase("backward", || {
                        let loss = (&loss * weight)?;
                        pullback(&loss, &loss.ones_like()?, &self.variables)
                    })?;
                    found.sum.push((part, 0), gradients)?;
                    found.numbers.push(numbers(&update, &loss, weight, rows)?);
                    found.updates.push(Update { losses: vec![loss.constant()], trace: None, ..update });
                }
                Err(_) if asks.state.lock().given.len() > waiting => {}
                Err(error) => return Err(error),
            }
        }
        match (found.updates.len(), asks.state.lock().given.len()) {
            (_, 0) => Ok(Some(found)),
            (0, _) => Ok(None),
            _ => bail!(Value, "update: all parts of a batch must ask alike, got some that are done before others"),
        }
    }

    /// The update of the whole batch.
    fn whole(self: &Arc<Self>, found: Found, numbers: &[Vec<u8>]) -> Result<Update> {
        let parts = numbers.iter().map(|part| lists(part)).collect::<Result<Vec<_>>>()?;
        let total = parts.iter().map(|lists| lists[0][1]).sum::<f64>();
        // A batch that nothing is learnt from, such as one without a preference, has no weight.
        let over = if total > 0.0 { 1.0 / total } else { 1.0 };
        let loss = parts.iter().map(|lists| lists[0][0] * lists[0][1]).sum::<f64>() * over;
        let reward = parts.iter().flat_map(|lists| lists[1].clone()).collect::<Vec<_>>();
        let like = &found.updates[0];
        let names = like.measured.keys().cloned().collect::<Vec<_>>();
        let measured = names.into_iter().enumerate().map(|(i, name)| Ok((name, mean(&parts, i + 2)?)));
        let measured = measured.collect::<Result<BTreeMap<_, _>>>()?;
        let gradients = phase("reduction", || self.reduced(found.sum, over))?;
        Ok(Update {
            losses: vec![known(loss, &like.losses[0], &self.variables, gradients)?],
            reward: Tensor::new(reward, like.reward.device())?.to_dtype(like.reward.dtype())?,
            measured,
            trace: None,
            weight: None,
            next: self.next(&found.updates),
        })
    }

    /// The next update of the same parts, where each has one.
    fn next(self: &Arc<Self>, updates: &[Update]) -> Option<Next> {
        let nexts = updates.iter().map(|update| update.next.clone()).collect::<Option<Vec<_>>>()?;
        let (cut, first) = (self.clone(), self.share.own().start);
        Some(Arc::new(move |policy: &dyn Velocity| cut.update(&|part| nexts[part.index - first](policy))))
    }

    /// The gradients of all parts, times a factor. Each rank adds some of the tensors, for all.
    fn reduced(&self, sum: Sum<Vec<Tensor>>, factor: f64) -> Result<Vec<Tensor>> {
        let ranks = self.group.size();
        if ranks == 1 {
            let total = sum.total()?.unwrap_or_default();
            return total.into_iter().map(|gradient| gradient * factor).collect();
        }
        let nodes = sum.nodes();
        let mine = |rank: usize| (rank..self.variables.len()).step_by(ranks);
        let to = |rank: usize| mine(rank).flat_map(|i| nodes.iter().map(move |(_, gradients)| &gradients[i]));
        let parts = (0..ranks).map(|rank| Ok(to(rank).map(bytes::of).collect::<Result<Vec<_>>>()?.concat()));
        let added = |given: &[Vec<u8>]| self.added(given, mine(self.group.rank()).collect());
        let all = self.group.share_out(parts.collect::<Result<_>>()?, added)?;
        let mut found = vec![None; self.variables.len()];
        for (rank, mut rest) in all.iter().map(|bytes| &bytes[..]).enumerate() {
            for i in mine(rank) {
                let variable = &self.variables[i];
                let tensor = taken(&mut rest, variable)?.to_device(variable.device())?;
                found[i] = Some((tensor * factor)?);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// The sums over the parts of all ranks of these tensors, of which each rank gave the nodes of its sum.
    fn added(&self, given: &[Vec<u8>], tensors: Vec<usize>) -> Result<Vec<u8>> {
        let layouts = (0..given.len()).map(|rank| nodes_of(self.share.parts_of(rank))).collect::<Result<Vec<_>>>()?;
        let mut rest: Vec<&[u8]> = given.iter().map(|bytes| &bytes[..]).collect();
        let mut one = |i: usize| {
            let mut sum = Sum::new(|a: Tensor, b: Tensor| a + b);
            for (rest, layout) in rest.iter_mut().zip(&layouts) {
                layout.iter().try_for_each(|node| sum.push(*node, taken(rest, &self.variables[i])?))?;
            }
            sum.total()?.as_ref().map_or(Ok(Vec::new()), bytes::of)
        };
        Ok(tensors.into_iter().map(&mut one).collect::<Result<Vec<_>>>()?.concat())
    }
}

/// A tensor like `like` from the beginning of bytes, which then begin behind it.
fn taken(bytes: &mut &[u8], like: &Tensor) -> Result<Tensor> {
    let size = like.elem_count() * like.dtype().size_in_bytes();
    let Some((own, rest)) = bytes.split_at_checked(size) else {
        bail!(Internal, "update: the ranks must have the same trained tensors, got fewer numbers from one");
    };
    *bytes = rest;
    bytes::read(own, like.dtype(), like.dims())
}

fn add(a: Vec<Tensor>, b: Vec<Tensor>) -> Result<Vec<Tensor>> {
    a.into_iter().zip(b).map(|(a, b)| a + b).collect()
}

/// A loss of a value and gradients that are known.
fn known(value: f64, like: &Tensor, variables: &[Tensor], gradients: Vec<Tensor>) -> Result<Tensor> {
    let value = Tensor::new(value, like.device())?.to_dtype(like.dtype())?;
    custom_vjp("parts", &variables.iter().collect::<Vec<_>>(), value, move |gradient, wanted| {
        let one = |(known, wanted): (&Tensor, &bool)| match wanted {
            true => Ok(Some(known.broadcast_mul(&gradient.to_dtype(known.dtype())?)?)),
            false => Ok(None),
        };
        gradients.iter().zip(wanted).map(one).collect()
    })
}

/// A part's loss and weight, rewards, and what was measured of it.
fn numbers(update: &Update, loss: &Tensor, weight: f64, rows: Rows) -> Result<Vec<u8>> {
    if update.reward.dims() != [rows.len] {
        bail!(Shape, "update: rewards must be of shape [{}], got {:?}", rows.len, update.reward.dims());
    }
    let measured = update.measured.values().map(read).collect::<Result<Vec<_>>>()?;
    let lists = [vec![read(loss)?[0], weight], read(&update.reward)?].into_iter().chain(measured);
    Ok(pack(lists.map(|list| list.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())))
}

fn lists(part: &[u8]) -> Result<Vec<Vec<f64>>> {
    unpack(part)?.iter().map(|list| read(&bytes::read(list, DType::F64, &[list.len() / 8])?)).collect()
}

/// The mean of a list over parts, by their samples.
fn mean(parts: &[Vec<Vec<f64>>], list: usize) -> Result<Tensor> {
    let samples = |lists: &Vec<Vec<f64>>| lists[1].len() as f64;
    let lists_of = parts.iter().map(|lists| lists.get(list).map(|values| (values, samples(lists))));
    let all = lists_of.collect::<Option<Vec<_>>>().filter(|all| all.iter().all(|(v, _)| v.len() == all[0].0.len()));
    let Some(all) = all else {
        bail!(Shape, "update: what is measured must be of one shape in all parts of a batch");
    };
    let over: f64 = all.iter().map(|(_, samples)| samples).sum();
    let entry = |i: usize| all.iter().map(|(values, samples)| values[i] * samples).sum::<f64>() / over;
    let means: Vec<f64> = (0..all[0].0.len()).map(entry).collect();
    match means[..] {
        [one] => Tensor::new(one, &Device::Cpu),
        _ => Tensor::new(means, &Device::Cpu),
    }
}

impl Batch {
    /// One update of this batch, which has the samples of this rank, by the updates that `run` gives of its parts.
    pub fn in_parts(&self, cut: &Arc<Cut>, run: &dyn Fn(&Batch) -> Result<Update>) -> Result<Update> {
        let (own, samples) = (cut.share.rows(&cut.share.own()), self.x0.dim(0)?);
        if own.len != samples {
            bail!(Shape, "update: the batch must have the {} samples of its share, got {samples}", own.len);
        }
        let end = Mutex::new(None);
        let update = cut.update(&|part| {
            let stream = self.rng.as_ref().map(|stream| stream.of_rows(part.rows));
            let update = run(&Batch { rng: stream.clone(), ..self.part(part, own.first)? })?;
            let drawn = stream.map(|stream| stream.draw(|rng| rng.counter()));
            match end.lock().replace(drawn) {
                Some(other) if other != drawn => {
                    bail!(
                        Value,
                        "update: all parts of a batch must draw as many numbers for a sample, got some that draw more"
                    )
                }
                _ => Ok(update),
            }
        })?;
        if let (Some(stream), Some(Some(counter))) = (&self.rng, end.into_inner()) {
            stream.draw(|rng| rng.set_counter(counter));
        }
        Ok(update)
    }

    /// The samples of a part, of a batch that begins with sample `first` of the whole.
    fn part(&self, part: Part, first: usize) -> Result<Self> {
        let rows = part.rows.first - first..part.rows.first - first + part.rows.len;
        Ok(Self { part: Some(part), ..self.rows(rows)? })
    }

    /// Some of the samples, as a batch.
    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        let of = |cost: &Arc<dyn TerminalCost>| cost.of_rows(&rows).unwrap_or_else(|| cost.clone());
        let numbers: Vec<u32> = rows.clone().map(|row| row as u32).collect();
        Ok(Self {
            x0: self.x0.narrow(0, rows.start, rows.len())?,
            condition: self.condition.rows(&numbers)?,
            cost: of(&self.cost),
            auxiliary: self.auxiliary.iter().map(of).collect(),
            ..self.clone()
        })
    }

    /// The numbers of all samples of the whole batch, in order, of as many for each of these samples.
    pub fn whole(&self, own: &[f64]) -> Result<Vec<f64>> {
        let Some(part) = &self.part else { return Ok(own.to_vec()) };
        let all = part.asks.ask(&own.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?.concat();
        read(&bytes::read(&all, DType::F64, &[all.len() / 8])?)
    }

    /// The prompts of all samples of the whole batch.
    pub fn whole_text(&self) -> Result<Vec<String>> {
        let Some(part) = &self.part else { return Ok(self.condition.text.clone()) };
        let all =
            part.asks.ask(&pack(&self.condition.text))?.iter().map(|text| unpack(text)).collect::<Result<Vec<_>>>()?;
        Ok(all.concat().into_iter().map(|text| String::from_utf8_lossy(&text).to_string()).collect())
    }

    /// What these samples have of a list for the whole batch.
    pub fn own<T: Clone>(&self, all: Vec<T>) -> Vec<T> {
        match &self.part {
            Some(Part { rows, .. }) if all.len() == rows.of => all[rows.first..rows.first + rows.len].to_vec(),
            _ => all,
        }
    }
}

/// One update of any method in parts; `batch` has the samples of this rank. See [`update`] for what is checked.
pub fn update_in_parts(
    method: &dyn Method,
    [policy, base]: [&dyn Velocity; 2],
    batch: &Batch,
    cut: &Arc<Cut>,
    state: &mut MethodState,
) -> Result<Update> {
    let next = Mutex::new(state.clone());
    let found = batch.in_parts(cut, &|batch| {
        let mut own = state.clone();
        let found = update(method, policy, base, batch, &mut own)?;
        *next.lock() = own;
        Ok(found)
    })?;
    *state = next.into_inner();
    Ok(found)
}

#[cfg(test)]
mod tests;
