//! Moments that ranks share (ZeRO-1, arXiv:1910.02054): each keeps those of some parameters, steps these, and gives their values to the others.
//!
//! Whole tensors are shared, the largest first, each to the rank that has the least. A step is elementwise, and its gradients and their
//! norm are the same on all ranks, so the values come to the bytes of one process.

use super::Params;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::group::Group;
use amscript_base::profile::phase;
use amscript_tensor::{DType, Tensor, bytes};
use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

/// A tensor of which one rank has the numbers.
#[derive(Clone, Debug)]
pub struct Shard {
    pub owner: usize,
    pub dtype: DType,
    pub dims: Vec<usize>,
    /// On its owner.
    pub own: Option<Tensor>,
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard({:?} on rank {})", self.dims, self.owner)
    }
}

/// A tensor of a state: the same on all ranks, or one rank's.
#[derive(Clone, Debug)]
pub enum Stored {
    Whole(Tensor),
    Shard(Shard),
}

impl Stored {
    pub fn dtype(&self) -> DType {
        match self {
            Self::Whole(tensor) => tensor.dtype(),
            Self::Shard(shard) => shard.dtype,
        }
    }

    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Whole(tensor) => tensor.dims(),
            Self::Shard(shard) => &shard.dims,
        }
    }
}

/// Which rank keeps the moments of each parameter.
pub(super) struct Owners {
    group: Arc<dyn Group>,
    of: Vec<usize>,
}

impl Owners {
    pub fn new(params: &Params, group: Arc<dyn Group>) -> Self {
        let sizes: Vec<usize> = params.iter().map(|(_, value)| value.elem_count()).collect();
        let (mut of, mut kept) = (vec![0; sizes.len()], vec![0; group.size()]);
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|i| Reverse(sizes[*i]));
        for i in order {
            of[i] = (0..kept.len()).min_by_key(|rank| kept[*rank]).unwrap_or_default();
            kept[of[i]] += sizes[i];
        }
        Self { group, of }
    }

    fn alone(&self) -> bool {
        self.group.size() == 1
    }

    /// Whether this rank keeps the moments of a parameter.
    pub fn keeps(&self, i: usize) -> bool {
        self.of[i] == self.group.rank()
    }

    /// A moment of a parameter as it is stored.
    pub fn stored(&self, i: usize, value: &Tensor, own: Option<Tensor>) -> Stored {
        match own {
            Some(tensor) if self.alone() => Stored::Whole(tensor),
            own => Stored::Shard(Shard { owner: self.of[i], dtype: value.dtype(), dims: value.dims().into(), own }),
        }
    }

    /// What a stored moment of a parameter has for this rank; what lies elsewhere than it is kept is an error on all ranks.
    pub fn taken(&self, i: usize, stored: Stored, name: &str) -> Result<Option<Tensor>> {
        match stored {
            Stored::Whole(tensor) => Ok(Some(tensor)),
            Stored::Shard(shard) if shard.owner == self.of[i] && !self.alone() => Ok(shard.own),
            Stored::Shard(shard) => {
                let message =
                    format!("load: `{name}` must be a tensor, got {shard}, of an optimizer that shares it otherwise");
                Err(Error::new(Kind::Value, message)
                    .hint("save it with `run.checkpoint` and load what `run.restore` gives"))
            }
        }
    }

    /// Refuses a step whose gradients, told by their norms, are not the same on all ranks.
    pub fn same_gradients(&self, step: usize, norms: &[f64]) -> Result<()> {
        if self.alone() {
            return Ok(());
        }
        let told = norms.iter().flat_map(|norm| norm.to_le_bytes()).chain((step as u64).to_le_bytes());
        self.group.same("step", &told.collect::<Vec<_>>(), |rank, first, other| {
            let message = format!("step: all ranks must have the same gradients, got others on rank {rank}");
            let error = Error::new(Kind::Value, message);
            (first != other)
                .then(|| error.hint("take the loss of `method.update` or `in_parts`, or no `sharded` optimizer"))
        })
    }

    /// Every rank gives the values that it has stepped to all, a tensor at a time.
    pub fn exchange(&self, params: &Params) -> Result<()> {
        if self.alone() {
            return Ok(());
        }
        let of = |rank: usize| (0..params.len()).filter(|i| self.of[*i] == rank).collect::<Vec<_>>();
        let kept: Vec<Vec<usize>> = (0..self.group.size()).map(of).collect();
        let rounds = kept.iter().map(Vec::len).max().unwrap_or_default();
        let at = |round: usize| kept.iter().map(|tensors| tensors.get(round).copied()).collect::<Vec<_>>();
        phase("exchange", || (0..rounds).try_for_each(|round| self.exchange_each(&params.tensors(), &at(round))))
    }

    /// The values of one tensor, or none, of each rank.
    fn exchange_each(&self, values: &[Tensor], of_rank: &[Option<usize>]) -> Result<()> {
        let own = of_rank[self.group.rank()].map_or(Ok(Vec::new()), |i| bytes::of(&values[i]))?;
        let others: Vec<usize> = (0..of_rank.len()).filter(|rank| *rank != self.group.rank()).collect();
        let to: Vec<_> = others.iter().map(|rank| (*rank, &own[..])).collect();
        for (rank, given) in others.iter().zip(self.group.exchange(&to, &others)?) {
            if let Some(value) = of_rank[*rank].map(|i| &values[i]) {
                value.set(&bytes::read(&given, value.dtype(), value.dims())?.to_device(value.device())?)?;
            }
        }
        Ok(())
    }
}
