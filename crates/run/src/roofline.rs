//! What an update takes at least on a card (the roofline model of Williams et al., 2009): every op the longer of its work at the card's
//! rate and of its bytes at its memory's.

use amscript_tensor::meta::{OpTotals, Ops};

/// A card as its maker describes it, without sparsity.
pub struct Card {
    pub name: &'static str,
    /// Operations a second of its matrix units in half precision.
    pub matrix: f64,
    /// The same of f32 outside them.
    pub single: f64,
    /// Bytes a second of its memory.
    pub memory: f64,
}

pub const CARDS: [Card; 2] = [
    Card { name: "H200", matrix: 989e12, single: 67e12, memory: 4.8e12 },
    Card { name: "L40S", matrix: 362e12, single: 91.6e12, memory: 864e9 },
];

/// Share of those rates that good kernels reach.
pub const REACHED: f64 = 0.7;

/// Seconds that the host takes to launch a kernel, of which an op has one or two.
pub const LAUNCH: f64 = 5e-6;

/// Ops that run on matrix units.
const PRODUCTS: [&str; 5] = ["linear", "attention", "self_attention", "conv2d", "matmul"];

/// The time of one op on a card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    pub seconds: f64,
    /// Whether its memory takes longer than its arithmetic.
    pub by_memory: bool,
}

impl Card {
    pub fn bound(&self, (name, dtype): (&str, &str), op: OpTotals) -> Bound {
        let half = matches!(dtype, "bf16" | "f16");
        let rate = if half && PRODUCTS.contains(&name) { self.matrix } else { self.single };
        let (work, moved) = (op.work / (rate * REACHED), op.moved / (self.memory * REACHED));
        Bound { seconds: work.max(moved), by_memory: moved > work }
    }

    /// Seconds of all ops, one after the other.
    pub fn seconds(&self, ops: &Ops) -> f64 {
        ops.iter().map(|(key, op)| self.bound(*key, *op).seconds).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_work_and_bytes_counts() {
        let card = Card { name: "", matrix: 100.0, single: 10.0, memory: 10.0 };
        let op = OpTotals { calls: 1, work: 700.0, moved: 35.0 };
        assert_eq!(card.bound(("linear", "bf16"), op), Bound { seconds: 10.0, by_memory: false });
        assert_eq!(card.bound(("linear", "f32"), op), Bound { seconds: 100.0, by_memory: false });
        let op = OpTotals { moved: 105.0, ..op };
        assert_eq!(card.bound(("linear", "bf16"), op), Bound { seconds: 15.0, by_memory: true });
        let ops = [(("linear", "bf16"), op), (("silu", "bf16"), OpTotals { calls: 1, work: 7.0, moved: 7.0 })];
        assert_eq!(card.seconds(&ops.into()), 16.0);
    }
}
