//! Programs that a host starts: each in a group of processes with what it starts itself, so that all of that ends with it.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io::Result;
use std::process::{Child, Command};
use std::sync::Arc;

/// The groups of the programs that run.
type Groups = Arc<Mutex<BTreeSet<u32>>>;

/// The programs that a host has started.
#[derive(Default)]
pub struct Programs(Groups);

/// A program that runs until this is dropped.
pub struct Program {
    pub child: Child,
    groups: Groups,
}

impl Programs {
    pub fn start(&self, command: &mut Command) -> Result<Program> {
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        let mut groups = self.0.lock();
        let child = command.spawn()?;
        groups.insert(child.id());
        Ok(Program { child, groups: self.0.clone() })
    }

    /// Ends all of them, where the process ends without dropping them.
    pub fn end(&self) {
        self.0.lock().iter().for_each(|group| end(*group));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let group = self.child.id();
        self.groups.lock().remove(&group);
        end(group); // before it is waited for, while its number is no other's
        self.child.kill().and_then(|()| self.child.wait()).ok(); // it may have ended by itself
    }
}

#[cfg(unix)]
fn end(group: u32) {
    // SAFETY: sends a signal, to a group that was begun here.
    unsafe { libc::killpg(group as libc::pid_t, libc::SIGKILL) };
}

/// Groups are not ended here, their first program is.
#[cfg(not(unix))]
fn end(_: u32) {}
