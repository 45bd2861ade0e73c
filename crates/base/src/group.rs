//! The processes that work on one run together, by their rank. One process is a group of its own.
//!
//! A group sends bytes and receives bytes ([`Group::exchange`]); what ranks do together is made of that here, the same for threads in
//! tests and for MPI. Every rank comes to the same meetings in the same order, so what happens next is decided from what all know.

use crate::bail;
use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Processes that work together.
pub trait Group: Send + Sync {
    /// Which of them this is, from 0.
    fn rank(&self) -> usize;

    fn size(&self) -> usize;

    /// Which of those on the same machine this is, from 0: of as many cards it takes that one.
    fn local(&self) -> usize {
        0
    }

    /// Sends bytes to other ranks, and gives what others sent, in the order of `from`.
    fn exchange(&self, to: &[(usize, &[u8])], from: &[usize]) -> Result<Vec<Vec<u8>>>;

    /// The work of this rank is over, well or not. Where it is not and others do not come to their end too, they are ended.
    fn leave(&self, _well: bool) {}
}

/// Asks a rank for what it has by a name.
pub type Ask<'a> = &'a dyn Fn(usize, &str) -> Result<Vec<u8>>;

/// A process by itself.
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, _: &[(usize, &[u8])], from: &[usize]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![Vec::new(); from.len()])
    }
}

impl dyn Group {
    /// The bytes of all ranks, in rank order. `what` says what for: ranks that come for different things are an error.
    pub fn all(&self, what: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.size() == 1 {
            return Ok(vec![bytes.to_vec()]);
        }
        let own = pack([what.as_bytes(), bytes]);
        let all = match self.rank() {
            0 => {
                let all: Vec<_> = std::iter::once(own).chain(self.exchange(&[], &self.others())?).collect();
                let said = pack(&all);
                self.exchange(&self.others().iter().map(|to| (*to, &said[..])).collect::<Vec<_>>(), &[])?;
                all
            }
            _ => unpack(&self.exchange(&[(0, &own)], &[0])?.concat())?,
        };
        let all = all.iter().map(|bytes| unpack(bytes)).collect::<Result<Vec<_>>>()?;
        for (rank, given) in all.iter().enumerate() {
            if given.first() != all[0].first() {
                let name = |i: usize| String::from_utf8_lossy(&all[i][0]).to_string();
                bail!(
                    Value, "ranks: all must do the same, got rank 0 at \"{}\" and rank {rank} at \"{}\"", name(0), name(rank);
                    hint: "a script's way must not depend on the rank, or on the time"
                );
            }
        }
        Ok(all.into_iter().filter_map(|mut given| given.pop()).collect())
    }

    /// Gives bytes to every rank, `parts[0]` to the first, and from those that all gave to this rank makes what all get: the answers of
    /// the ranks, in rank order.
    pub fn share_out(
        &self,
        mut parts: Vec<Vec<u8>>,
        answer: impl FnOnce(&[Vec<u8>]) -> Result<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>> {
        let (others, rank) = (self.others(), self.rank());
        let to: Vec<_> = others.iter().map(|to| (*to, &parts[*to][..])).collect();
        let mut given = self.exchange(&to, &others)?;
        given.insert(rank, std::mem::take(&mut parts[rank]));
        let own = answer(&given)?;
        let mut all = self.exchange(&others.iter().map(|to| (*to, &own[..])).collect::<Vec<_>>(), &others)?;
        all.insert(rank, own);
        Ok(all)
    }

    fn others(&self) -> Vec<usize> {
        (0..self.size()).filter(|rank| *rank != self.rank()).collect()
    }

    /// Whether any rank says so.
    pub fn any(&self, what: &str, own: bool) -> Result<bool> {
        Ok(self.all(what, &[u8::from(own)])?.iter().any(|bytes| bytes == &[1]))
    }

    /// Whether this process speaks for all: prints, and writes files.
    pub fn speaks(&self) -> bool {
        self.rank() == 0
    }

    /// What rank 0 has; where that is an error, all have it.
    pub fn from_first(&self, what: &str, own: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let own = if self.speaks() { own() } else { Ok(Vec::new()) };
        Ok(self.agree(what, own)?.swap_remove(0))
    }

    /// What rank 0 makes of what it asks others for; each gives what it has by the name that is asked. Where one has an error, all have it.
    pub fn from_first_asking(
        &self,
        what: &str,
        have: impl Fn(&str) -> Result<Vec<u8>>,
        own: impl FnOnce(Ask) -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        const NO_MORE: &[u8] = &[];
        let ask =
            |rank: usize, name: &str| told(rank, &unpack(&self.exchange(&[(rank, &pack([name]))], &[rank])?.concat())?);
        let made = if self.speaks() { own(&ask) } else { Ok(Vec::new()) };
        if self.speaks() {
            self.exchange(&self.others().iter().map(|to| (*to, NO_MORE)).collect::<Vec<_>>(), &[])?;
        } else {
            while let [name] = &unpack(&self.exchange(&[], &[0])?.concat())?[..] {
                self.exchange(&[(0, &telling(&have(&String::from_utf8_lossy(name))))], &[])?;
            }
        }
        Ok(self.agree(what, made)?.swap_remove(0))
    }

    /// Refuses what is not the same on all ranks; `fault` makes the error of rank 0's bytes and another rank's.
    pub fn same(&self, what: &str, own: &[u8], fault: impl Fn(usize, &[u8], &[u8]) -> Option<Error>) -> Result<()> {
        let all = self.all(what, own)?;
        match all.iter().enumerate().skip(1).find_map(|(rank, other)| fault(rank, &all[0], other)) {
            Some(error) if self.speaks() => Err(error),
            Some(error) => Err(error.within("rank 0")), // which says it
            None => Ok(()),
        }
    }

    /// The values of all ranks; where one has an error instead, all have the first of these.
    pub fn agree(&self, what: &str, own: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        if self.size() == 1 {
            return Ok(vec![own?]);
        }
        let all = self.all(what, &telling(&own))?.iter().map(|bytes| unpack(bytes)).collect::<Result<Vec<_>>>()?;
        match all.iter().position(|parts| parts.len() != 1) {
            Some(rank) if rank == self.rank() => own.map(|_| Vec::new()),
            _ => all.iter().enumerate().map(|(rank, parts)| told(rank, parts)).collect(),
        }
    }

    /// Whether an error needs no word of this rank: another's, which says it itself, or an end that all come to.
    pub fn is_said(&self, error: &Error) -> bool {
        let others = || self.others().iter().any(|rank| error.message.starts_with(&format!("rank {rank}: ")));
        !self.speaks() && (error.kind == Kind::Interrupt || others())
    }

    /// What messages of this process begin with: `rank 2: `, and nothing on rank 0, which speaks for all.
    pub fn prefix(&self) -> String {
        if self.speaks() { String::new() } else { format!("rank {}: ", self.rank()) }
    }
}

/// Bytes, or an error, as they go to other ranks.
fn telling(own: &Result<Vec<u8>>) -> Vec<u8> {
    match own {
        Ok(bytes) => pack([bytes]),
        Err(e) => {
            let hint = e.hint.as_deref().unwrap_or_default();
            pack([&[e.kind as u8][..], e.message.as_bytes(), hint.as_bytes()])
        }
    }
}

/// What another rank is [`telling`]; its error by its name.
fn told(rank: usize, parts: &[Vec<u8>]) -> Result<Vec<u8>> {
    if let [bytes] = parts {
        return Ok(bytes.clone());
    }
    let text = |i: usize| parts.get(i).map(|bytes| String::from_utf8_lossy(bytes).to_string()).unwrap_or_default();
    let kind = parts.first().and_then(|code| Kind::ALL.get(usize::from(*code.first()?)));
    let error = Error::new(kind.copied().unwrap_or(Kind::Internal), text(1)).within(format_args!("rank {rank}"));
    Err(if text(2).is_empty() { error } else { error.hint(text(2)) })
}

/// Several byte strings as one.
pub fn pack(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend((part.as_ref().len() as u64).to_le_bytes());
        out.extend(part.as_ref());
    }
    out
}

/// What [`pack`] was given.
pub fn unpack(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let part = bytes.split_first_chunk().and_then(|(len, rest)| {
            let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
            rest.split_at_checked(len)
        });
        let Some((part, rest)) = part else {
            bail!(Internal, "ranks: an answer must be whole, got one that is cut");
        };
        parts.push(part.to_vec());
        bytes = rest;
    }
    Ok(parts)
}

/// Ranks as threads of one process, for tests: what each of so many finds.
pub fn threads<T: Send>(size: usize, work: impl Fn(Arc<dyn Group>) -> T + Sync) -> Vec<T> {
    let (mut senders, mut receivers): (Vec<Vec<_>>, Vec<Vec<_>>) = Default::default();
    for _ in 0..size {
        let (to_all, from_one): (Vec<_>, Vec<_>) = (0..size).map(|_| channel()).unzip();
        senders.push(to_all);
        receivers.push(from_one);
    }
    let mut ranks: Vec<Thread> = senders
        .into_iter()
        .enumerate()
        .map(|(rank, to)| Thread { rank, to: to.into_iter().map(Mutex::new).collect(), from: Vec::new() })
        .collect();
    for from_one in receivers {
        ranks.iter_mut().zip(from_one).for_each(|(rank, from)| rank.from.push(Mutex::new(from)));
    }
    let work = &work;
    std::thread::scope(|scope| {
        let running: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || work(Arc::new(rank)))).collect();
        let ended = running.into_iter().map(|thread| thread.join());
        ended.map(|found| found.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// A rank with its doors to the others.
struct Thread {
    rank: usize,
    to: Vec<Mutex<Sender<Vec<u8>>>>,
    from: Vec<Mutex<Receiver<Vec<u8>>>>,
}

impl Group for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn exchange(&self, to: &[(usize, &[u8])], from: &[usize]) -> Result<Vec<Vec<u8>>> {
        let gone = |_| Error::new(Kind::Internal, "ranks: a thread has ended before the others");
        for (rank, bytes) in to {
            self.to[*rank].lock().send(bytes.to_vec()).map_err(|_| gone(()))?;
        }
        from.iter().map(|rank| self.from[*rank].lock().recv().map_err(|_| gone(()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_get_what_all_gave_in_order() {
        let found = threads(3, |group| group.all("x", &[group.rank() as u8; 2]).unwrap());
        assert!(found.iter().all(|all| all == &[[0, 0], [1, 1], [2, 2]]));
        assert_eq!(threads(2, |group| group.any("stop", group.rank() == 1).unwrap()), [true, true]);
        assert_eq!(threads(1, |group| group.all("x", b"a").unwrap()), [[b"a"]]);
    }

    #[test]
    fn every_rank_answers_to_all() {
        let found = threads(3, |group| {
            let parts = (0..3).map(|to| vec![group.rank() as u8, to]).collect();
            group.share_out(parts, |given| Ok(given.concat())).unwrap()
        });
        let answer = |to: u8| vec![0, to, 1, to, 2, to];
        assert!(found.iter().all(|all| *all == [answer(0), answer(1), answer(2)]));
    }

    #[test]
    fn an_error_of_one_is_an_error_of_all() {
        let found = threads(3, |group| {
            let own = match group.rank() {
                2 => Err(Error::new(Kind::Permission, "step: not allowed").hint("ask for it")),
                rank => Ok(vec![rank as u8]),
            };
            let error = group.agree("update", own).unwrap_err();
            (group.is_said(&error), error)
        });
        assert_eq!(found[2].1.message, "step: not allowed");
        assert_eq!([found[0].0, found[1].0, found[2].0], [false, true, false]);
        for (_, other) in &found[..2] {
            assert_eq!((other.kind, other.message.as_str()), (Kind::Permission, "rank 2: step: not allowed"));
            assert_eq!(other.hint.as_deref(), Some("ask for it"));
        }
        assert_eq!(threads(2, |group| group.agree("x", Ok(vec![7])).unwrap()), [[[7], [7]], [[7], [7]]]);
    }

    #[test]
    fn the_first_asks_others_and_makes_something_of_it() {
        let found = |fails: bool| {
            threads(3, |group| {
                let have = |name: &str| match fails && group.rank() == 2 {
                    true => Err(Error::new(Kind::File, "lost")),
                    false => Ok(format!("{name}{}", group.rank()).into_bytes()),
                };
                let own = |ask: Ask| Ok([ask(2, "a")?, ask(1, "b")?, ask(2, "c")?].concat());
                group.from_first_asking("made", have, own)
            })
        };
        assert!(found(false).iter().all(|made| made.as_ref().is_ok_and(|made| made == b"a2b1c2")));
        let messages = found(true).into_iter().map(|made| made.unwrap_err().message).collect::<Vec<_>>();
        assert_eq!(messages, ["rank 2: lost", "rank 0: rank 2: lost", "rank 0: rank 2: lost"]);
    }

    #[test]
    fn ranks_that_go_different_ways_are_named() {
        let found = threads(2, |group| {
            let what = ["checkpoint", "update"][group.rank()];
            group.all(what, &[]).unwrap_err().message
        });
        assert_eq!(found[0], "ranks: all must do the same, got rank 0 at \"checkpoint\" and rank 1 at \"update\"");
        assert_eq!(found[0], found[1]);
    }

    #[test]
    fn packed_bytes_are_unpacked() {
        let parts = [b"".to_vec(), b"abc".to_vec(), vec![0; 300]];
        assert_eq!(unpack(&pack(&parts)).unwrap(), parts);
        assert!(unpack(&pack(&parts)[..12]).is_err() && unpack(&[1]).is_err());
    }
}
