//! Work that steps need not wait for: pictures are encoded and written by a thread of their own, one after the other.

use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() -> Result<()> + Send>;

/// A queue and its thread, which starts with the first job; dropping it waits for all of them.
#[derive(Default)]
pub struct Background {
    thread: Option<(SyncSender<Job>, JoinHandle<()>)>,
    /// The first error of a job, until somebody asks.
    fault: Arc<Mutex<Option<Error>>>,
}

/// Jobs that may wait; whoever brings one more waits too, so that memory is bounded.
const QUEUE: usize = 4;

impl Background {
    /// Leaves a job to the thread, which does it for the host that brings it. An error of one before it is given here.
    pub fn push(&mut self, job: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        self.check()?;
        let (queue, _) = match &mut self.thread {
            Some(thread) => thread,
            none => none.insert(start(self.fault.clone())?),
        };
        let gone = |_| Error::new(Kind::Internal, "images: the thread that writes them has ended");
        let host = Context::current();
        queue.send(Box::new(move || host.enter(job))).map_err(gone)
    }

    /// The error of a job that ended, if one failed.
    pub fn check(&self) -> Result<()> {
        self.fault.lock().take().map_or(Ok(()), Err)
    }

    /// Waits for all jobs.
    pub fn wait(&mut self) -> Result<()> {
        if let Some((queue, worker)) = self.thread.take() {
            drop(queue);
            worker.join().ok(); // a panic has printed itself
        }
        self.check()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.wait().ok();
    }
}

fn start(fault: Arc<Mutex<Option<Error>>>) -> Result<(SyncSender<Job>, JoinHandle<()>)> {
    let (queue, jobs) = sync_channel::<Job>(QUEUE);
    let work = move || {
        for job in jobs {
            if let Err(error) = job() {
                fault.lock().get_or_insert(error);
            }
        }
    };
    let worker = std::thread::Builder::new().name("images".into()).spawn(work);
    let worker = worker.map_err(|e| Error::new(Kind::Internal, format!("images: no thread to write them on ({e})")))?;
    Ok((queue, worker))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_end_in_their_order_and_the_first_error_is_given_once() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let mut background = Background::default();
        for i in 0..20 {
            let done = done.clone();
            background
                .push(move || {
                    done.lock().push(i);
                    Ok(())
                })
                .unwrap();
        }
        background.wait().unwrap();
        assert_eq!(*done.lock(), (0..20).collect::<Vec<_>>());
        for word in ["first", "second"] {
            background.push(move || Err(Error::new(Kind::File, word))).ok();
        }
        assert!(background.wait().unwrap_err().message == "first" && background.wait().is_ok());
    }
}
