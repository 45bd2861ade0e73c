//! A group of processes over MPI. All of MPI is in one thread, which waits by asking, so that it never keeps a core busy, and beats
//! meanwhile: a rank that is silent for too long ends the job.

use amscript_base::bail;
use amscript_base::error::{Error, Kind, Result};
use amscript_base::group::Group;
use amscript_base::terminal::note;
use mpi::point_to_point::MatchedReceiveVec;
use mpi::request::scope;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most bytes of one message: MPI counts in 32 bits.
const PIECE: usize = 1 << 30;
/// Between looks for messages that are waited for.
const PAUSE: Duration = Duration::from_micros(50);
/// Between beats; each rank beats for the next one, and listens to the one before.
const BEAT: Duration = Duration::from_millis(500);
/// A silence after which the job is ended.
const SILENCE: Duration = Duration::from_secs(7);
/// How long others may take to come to their end after an error of this rank.
const GRACE: Duration = Duration::from_secs(4);

const DATA: i32 = 1;
const PULSE: i32 = 2;

/// What the thread of MPI is asked to do.
enum Job {
    Exchange { to: Vec<(usize, Vec<u8>)>, from: Vec<usize>, found: Sender<Vec<Vec<u8>>> },
    Leave { well: bool },
}

/// The processes that one `mpirun` or `srun` started.
struct World {
    rank: usize,
    size: usize,
    local: usize,
    jobs: Mutex<Sender<Job>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Joins the others.
pub fn start() -> Result<Arc<dyn Group>> {
    let (jobs, queue) = channel();
    let (tell, told) = channel();
    let thread = std::thread::Builder::new().name("mpi".into()).spawn(move || {
        let Some((universe, _)) = mpi::initialize_with_threading(mpi::Threading::Funneled) else { return };
        let world = universe.world();
        let local = world.split_shared(world.rank()).rank();
        tell.send([world.rank(), world.size(), local].map(|n| n as usize)).ok();
        serve(&world, &queue);
        drop(world);
    });
    match (thread, told.recv()) {
        (Ok(thread), Ok([rank, size, local])) => {
            let (jobs, thread) = (Mutex::new(jobs), Mutex::new(Some(thread)));
            Ok(Arc::new(World { rank, size, local, jobs, thread }))
        }
        _ => bail!(Internal, "ranks: MPI cannot be started"),
    }
}

impl Group for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local(&self) -> usize {
        self.local
    }

    fn exchange(&self, to: &[(usize, &[u8])], from: &[usize]) -> Result<Vec<Vec<u8>>> {
        let to = to.iter().map(|(rank, bytes)| (*rank, bytes.to_vec())).collect();
        let (found, answer) = channel();
        self.jobs.lock().send(Job::Exchange { to, from: from.to_vec(), found }).ok();
        answer.recv().map_err(|_| Error::new(Kind::Internal, "ranks: the thread of MPI has ended"))
    }

    fn leave(&self, well: bool) {
        self.jobs.lock().send(Job::Leave { well }).ok();
        self.thread.lock().take().map(JoinHandle::join); // MPI is over when its thread is
    }
}

/// Does what it is asked, and beats.
fn serve(world: &SimpleCommunicator, queue: &Receiver<Job>) {
    let mut pulse = Pulse::new();
    loop {
        match queue.recv_timeout(BEAT) {
            Ok(Job::Exchange { to, from, found }) => drop(found.send(exchange(world, &to, &from, &mut pulse))),
            Ok(Job::Leave { well }) => return meet_at_the_end(world, well, &mut pulse),
            Err(RecvTimeoutError::Timeout) => pulse.beat(world),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn exchange(world: &SimpleCommunicator, to: &[(usize, Vec<u8>)], from: &[usize], pulse: &mut Pulse) -> Vec<Vec<u8>> {
    // The last piece of a message is the one that is not full.
    let pieces = |bytes: &[u8]| {
        (0..=bytes.len() / PIECE).map(|i| i * PIECE..bytes.len().min((i + 1) * PIECE)).collect::<Vec<_>>()
    };
    scope(|scope| {
        let mut sending = Vec::new();
        for (rank, bytes) in to {
            let other = world.process_at_rank(*rank as i32);
            sending.extend(
                pieces(bytes).into_iter().map(|piece| other.immediate_send_with_tag(scope, &bytes[piece], DATA)),
            );
        }
        let (mut found, mut whole) = (vec![Vec::new(); from.len()], vec![false; from.len()]);
        while !sending.is_empty() || whole.contains(&false) {
            let mut moved = false;
            for i in (0..from.len()).filter(|i| !whole[*i]).collect::<Vec<_>>() {
                let message = world.process_at_rank(from[i] as i32).immediate_matched_probe_with_tag(DATA);
                if let Some((piece, _)) = message.map(MatchedReceiveVec::matched_receive_vec::<u8>) {
                    (whole[i], moved) = (piece.len() < PIECE, true);
                    found[i].extend(piece);
                }
            }
            let before = sending.len();
            sending = sending.into_iter().filter_map(|request| request.test().err()).collect();
            pulse.beat(world);
            if !moved && sending.len() == before {
                std::thread::sleep(PAUSE);
            }
        }
        found
    })
}

/// Waits for the others to come to their end, after an error of this rank not for long.
fn meet_at_the_end(world: &SimpleCommunicator, well: bool, pulse: &mut Pulse) {
    let start = Instant::now();
    let mut request = world.immediate_barrier();
    while let Err(waiting) = request.test() {
        request = waiting;
        pulse.beat(world);
        if !well && start.elapsed() > GRACE {
            note(&format!("rank {} ends all ranks: the others go on without it\n", world.rank()));
            world.abort(1);
        }
        std::thread::sleep(PAUSE * 20);
    }
}

/// When this rank beat, and when it heard the one before.
struct Pulse {
    sent: Instant,
    heard: Instant,
    looked: Instant,
}

impl Pulse {
    fn new() -> Self {
        let now = Instant::now();
        Self { sent: now, heard: now, looked: now }
    }

    fn beat(&mut self, world: &SimpleCommunicator) {
        let (now, rank, size) = (Instant::now(), world.rank(), world.size());
        // Who was stopped itself has heard nobody.
        if now - self.looked > 4 * BEAT {
            self.heard = now;
        }
        self.looked = now;
        if size == 1 || now - self.sent < BEAT {
            return;
        }
        self.sent = now;
        world.process_at_rank((rank + 1) % size).send_with_tag(&[0u8; 1][..], PULSE);
        let before = world.process_at_rank((rank + size - 1) % size);
        while let Some(beat) = before.immediate_matched_probe_with_tag(PULSE) {
            beat.matched_receive_vec::<u8>();
            self.heard = now;
        }
        let silence = now - self.heard;
        if silence > SILENCE {
            let silent = (rank + size - 1) % size;
            note(&format!("error: rank {silent} has been silent for {} s; all ranks are ended\n", silence.as_secs()));
            world.abort(1);
        }
    }
}
