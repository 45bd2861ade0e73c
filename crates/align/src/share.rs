//! How a batch is cut into parts, which ranks have which, and how what is found of them is summed.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::group::Group;
use amscript_tensor::Rows;
use std::ops::Range;

/// A batch cut into parts of about the same size, groups of samples whole; each rank has parts that follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    samples: usize,
    /// Samples of a prompt, which stay together.
    group: usize,
    parts: usize,
    rank: usize,
    ranks: usize,
}

impl Share {
    /// Cuts a batch: a part for each rank, or more so that none has more than `most` samples, at least a group.
    pub fn new(samples: usize, group: usize, most: Option<usize>, ranks: &dyn Group) -> Result<Self> {
        let (rank, ranks) = (ranks.rank(), ranks.size());
        if group == 0 || !samples.is_multiple_of(group) {
            bail!(Value, "share: the samples of a prompt must divide the batch of {samples}, got {group}");
        }
        if most == Some(0) {
            bail!(Value, "share: `micro_batch` must be at least 1 sample, got 0"; hint: "leave it out for no bound");
        }
        if samples == 0 {
            bail!(Value, "share: a batch must have at least 1 sample, got 0");
        }
        let groups = samples / group;
        if groups < ranks {
            bail!(
                Value, "share: a batch must have a prompt for each of the {ranks} ranks, got {groups} prompts of {group} samples";
                hint: "give a larger batch, or start fewer ranks"
            );
        }
        let parts = most.map_or(1, |most| samples.div_ceil(most)).max(ranks).min(groups);
        Ok(Self { samples, group, parts, rank, ranks })
    }

    /// Whether the batch is in one piece.
    pub fn is_whole(&self) -> bool {
        self.parts == 1
    }

    pub fn parts(&self) -> usize {
        self.parts
    }

    /// The parts of a rank.
    pub fn parts_of(&self, rank: usize) -> Range<usize> {
        rank * self.parts / self.ranks..(rank + 1) * self.parts / self.ranks
    }

    /// The parts of this rank.
    pub fn own(&self) -> Range<usize> {
        self.parts_of(self.rank)
    }

    /// The samples of some parts.
    pub fn rows(&self, parts: &Range<usize>) -> Rows {
        let start = |part: usize| part * (self.samples / self.group) / self.parts * self.group;
        let first = start(parts.start);
        Rows { first, len: start(parts.end) - first, of: self.samples }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (own, rows) = (self.own(), self.rows(&self.own()));
        let end = rows.first + rows.len;
        write!(f, "share(samples {}..{end} of {}, in {} of {} parts)", rows.first, rows.of, own.len(), self.parts)
    }
}

/// A sum over parts 0, 1, 2, .. in pairs: of neighbours, then of neighbouring pairs, and so on. Its order depends on the parts alone, not on
/// who adds them, so that any number of ranks comes to the same bytes.
pub struct Sum<T> {
    /// Sums of 2^level parts from `start` on.
    nodes: Vec<(Node, T)>,
    add: fn(T, T) -> Result<T>,
}

/// The first part of a sum, and the power of two that says of how many.
pub type Node = (usize, u32);

impl<T> Sum<T> {
    pub fn new(add: fn(T, T) -> Result<T>) -> Self {
        Self { nodes: Vec::new(), add }
    }

    /// Adds what follows on what is there.
    pub fn push(&mut self, node: Node, value: T) -> Result<()> {
        let (mut node, mut value) = (node, value);
        while let Some((before, other)) = self.nodes.pop() {
            if before.1 != node.1 || !before.0.is_multiple_of(2 << before.1) {
                self.nodes.push((before, other));
                break;
            }
            (node, value) = ((before.0, before.1 + 1), (self.add)(other, value)?);
        }
        self.nodes.push((node, value));
        Ok(())
    }

    /// The sums that cannot be added before their neighbours are known.
    pub fn nodes(self) -> Vec<(Node, T)> {
        self.nodes
    }

    /// The sum of all; none of nothing.
    pub fn total(self) -> Result<Option<T>> {
        let add = self.add;
        self.nodes.into_iter().rev().try_fold(None, |sum, (_, value)| match sum {
            None => Ok(Some(value)),
            Some(sum) => add(value, sum).map(Some),
        })
    }
}

/// The nodes that a sum over some parts is left with.
pub fn nodes_of(parts: Range<usize>) -> Result<Vec<Node>> {
    let mut sum = Sum::new(|(), ()| Ok(()));
    parts.into_iter().try_for_each(|part| sum.push((part, 0), ()))?;
    Ok(sum.nodes().into_iter().map(|(node, ())| node).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use amscript_base::group::{Alone, threads};

    #[test]
    fn a_sum_is_the_same_whoever_adds() {
        let add = |a: String, b: String| Ok(format!("({a}+{b})"));
        for parts in 1..14 {
            let mut whole = Sum::new(add);
            (0..parts).for_each(|i| whole.push((i, 0), i.to_string()).unwrap());
            let whole = whole.total().unwrap().unwrap();
            for ranks in 1..=parts {
                let mut all = Sum::new(add);
                for rank in 0..ranks {
                    let (mut own, parts) = (Sum::new(add), rank * parts / ranks..(rank + 1) * parts / ranks);
                    parts.clone().for_each(|i| own.push((i, 0), i.to_string()).unwrap());
                    let nodes = own.nodes();
                    let layout: Vec<Node> = nodes.iter().map(|(node, _)| *node).collect();
                    assert_eq!(layout, nodes_of(parts).unwrap());
                    nodes.into_iter().for_each(|(node, value)| all.push(node, value).unwrap());
                }
                assert_eq!(all.total().unwrap().unwrap(), whole, "{parts} parts, {ranks} ranks");
            }
        }
    }

    #[test]
    fn a_batch_is_cut_between_prompts_and_ranks_have_all_of_it() {
        let cut = |samples, group, most, ranks| {
            threads(ranks, |ranks| {
                let share = Share::new(samples, group, most, &*ranks).unwrap();
                share.own().map(|part| share.rows(&(part..part + 1)).len).collect::<Vec<_>>()
            })
        };
        assert_eq!(cut(8, 1, None, 1), [[8]]);
        assert_eq!(cut(8, 1, Some(3), 1), [[2, 3, 3]]);
        assert_eq!(cut(7, 1, None, 3), [[2], [2], [3]]);
        assert_eq!(cut(12, 4, Some(4), 2), [vec![4], vec![4, 4]]);
        assert_eq!(cut(12, 4, Some(1), 1), [[4, 4, 4]]);
        assert_eq!(cut(16, 1, Some(4), 2), [[4, 4], [4, 4]]);
        let message = threads(3, |ranks| Share::new(8, 4, None, &*ranks).unwrap_err().message);
        assert_eq!(message[0], "share: a batch must have a prompt for each of the 3 ranks, got 2 prompts of 4 samples");
        assert_eq!(
            Share::new(0, 1, None, &Alone).unwrap_err().message,
            "share: a batch must have at least 1 sample, got 0"
        );
        assert!(Share::new(8, 3, None, &Alone).is_err() && Share::new(8, 1, Some(0), &Alone).is_err());
    }
}
