//! A wish to stop that every op of a model looks at, so that a call ends within one of them.

use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// Errs once the host in whose context this runs is to stop.
pub fn check() -> Result<()> {
    Context::current().interrupt.check()
}

/// Runs long work that does not ask, on a thread of its own; where a stop is asked for, it is left behind.
pub fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || sender.send(work()));
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) => check()?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::new(Kind::Internal, "the work panicked")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_does_not_ask_is_left_behind() {
        let context = Context::default();
        assert_eq!(context.enter(|| beside(|| 3)).unwrap(), 3);
        context.interrupt.ask();
        let forever = || beside(|| std::thread::sleep(Duration::from_secs(3600)));
        assert_eq!(context.enter(forever).unwrap_err().kind, Kind::Interrupt);
    }
}
