//! AdamW with readable state, learning-rate schedules, moving averages of parameters.

mod adamw;
mod ema;
mod param;
mod schedule;
mod shard;

pub use adamw::{AdamW, NotFinite, OptimizerOptions, StepOptions, StepReport};
pub use ema::Ema;
pub use param::Params;
pub use schedule::{Schedule, constant_rate, cosine, open_cosine};
pub use shard::{Shard, Stored};
