//! A judge outside of this process: an HTTP server, or a program that reads questions on its standard input.
//!
//! A question is `{"prompts": [..], "images": [..]}` with images as PNG in base64, its answer `{"scores": [..]}` or the list alone, a number for
//! each image; functions may word both otherwise. A program is asked in lines of JSON and stays; its standard error is ours. Judged is what a
//! PNG holds, so scores have no gradient. An image that was judged under its prompt is not asked about again.

use crate::{Batch, Reward};
use amscript_base::bail;
use amscript_base::context::Context;
use amscript_base::error::{Error, Kind, Result, warn_once};
use amscript_base::program::Program;
use amscript_nn::data::image;
use amscript_tensor::Tensor;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Most bytes of an answer.
const ANSWER: u64 = 16 << 20;
/// Scores that an error shows of too many.
const SHOWN: usize = 8;
/// Most judgements that are kept.
const KEPT: usize = 1 << 16;
/// How often a wish to stop is looked for while an answer is awaited.
const GLANCE: Duration = Duration::from_millis(50);
/// The pause before a question is asked again, doubled each time.
const PAUSE: Duration = Duration::from_millis(250);

/// The kind of an error that asking again does not mend: a refusal, a program that is not there.
const FINAL: Kind = Kind::Option;

/// Where a judge is.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// `http://..` or `https://..`, asked by POST.
    Url(String),
    /// A program and its arguments.
    Program(Vec<String>),
}

impl Place {
    /// Errs where a recipe may not reach it.
    fn allowed(&self) -> Result<()> {
        let context = Context::current();
        match self {
            Place::Url(url) => match url.parse::<ureq::http::Uri>().ok().as_ref().and_then(|url| url.host()) {
                Some(host) => context.permissions().connect(host),
                None => bail!(Value, "judge: expected an address such as http://localhost:8000/score, got \"{url}\""),
            },
            Place::Program(words) => match words.first() {
                Some(program) => context.permissions().start(program),
                None => bail!(Value, "judge: expected a program and its arguments, got an empty array"),
            },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::Url(url) => f.write_str(url),
            Place::Program(words) => f.write_str(&words.join(" ")),
        }
    }
}

/// The question about prompts and their images, PNG in base64.
pub type Ask = Box<dyn Fn(&[String], &[String]) -> Result<Value> + Send + Sync>;
/// The scores in an answer.
pub type Hear = Box<dyn Fn(&Value) -> Result<Vec<f64>> + Send + Sync>;

/// How a judge is asked.
pub struct Manner {
    /// Most images of a question.
    pub batch: usize,
    /// For one question.
    pub timeout: Duration,
    /// How often a question is asked again that had no answer, or one that is none.
    pub retries: usize,
    /// Sent with each request, names and values.
    pub headers: Vec<(String, String)>,
    /// Other words than the usual ones.
    pub ask: Option<Ask>,
    pub hear: Option<Hear>,
}

/// A prompt and the bytes of an image, hashed.
type Key = [u8; 32];

/// A judge, and what it said.
pub struct Judge {
    place: Place,
    manner: Manner,
    known: Mutex<HashMap<Key, f64>>,
    /// Whoever asks, while one is there.
    clerk: Mutex<Option<Clerk>>,
}

impl Judge {
    /// # Errors
    /// A place that is none, or that a recipe may not reach.
    pub fn new(place: Place, manner: Manner) -> Result<Self> {
        place.allowed()?;
        Ok(Self { place, manner, known: Mutex::default(), clerk: Mutex::default() })
    }

    /// Scores of these prompts and images, PNG.
    fn judge(&self, prompts: &[String], images: &[Vec<u8>]) -> Result<Vec<f64>> {
        let key =
            |i: usize| -> Key { Sha256::new().chain_update(&images[i]).chain_update(&prompts[i]).finalize().into() };
        let keys: Vec<Key> = (0..images.len()).map(key).collect();
        let mut open: Vec<usize> = (0..keys.len()).filter(|i| !keys[..*i].contains(&keys[*i])).collect();
        let mut known = self.known_of(&keys);
        open.retain(|i| !known.contains_key(&keys[*i]));
        for chunk in open.chunks(self.manner.batch) {
            let of = |all: &dyn Fn(usize) -> String| chunk.iter().map(|i| all(*i)).collect::<Vec<_>>();
            let (words, pictures) = (of(&|i| prompts[i].clone()), of(&|i| base64::encode(&images[i])));
            let scores = self.answer(&words, &pictures)?;
            let found: Vec<(Key, f64)> = chunk.iter().map(|i| keys[*i]).zip(scores).collect();
            self.keep(&found);
            known.extend(found);
        }
        Ok(keys.iter().map(|key| known[key]).collect())
    }

    /// What is known is locked for a moment only: who asks may be asked by what it asks.
    fn known_of(&self, keys: &[Key]) -> HashMap<Key, f64> {
        let known = self.known.lock();
        keys.iter().filter_map(|key| Some((*key, *known.get(key)?))).collect()
    }

    fn keep(&self, found: &[(Key, f64)]) {
        let mut known = self.known.lock();
        if known.len() + found.len() > KEPT {
            known.clear();
        }
        known.extend(found.iter().copied());
    }

    /// Asks until there is an answer, or too often.
    fn answer(&self, prompts: &[String], images: &[String]) -> Result<Vec<f64>> {
        let question = match &self.manner.ask {
            Some(ask) => ask(prompts, images)?,
            None => json!({ "prompts": prompts, "images": images }),
        };
        let mut pause = PAUSE;
        for left in (0..=self.manner.retries).rev() {
            let fault = match self.ask_once(question.to_string()).and_then(|answer| self.hear(&answer, images.len())) {
                Ok(scores) => return Ok(scores),
                Err(fault) => fault,
            };
            Context::current().interrupt.check()?;
            if left == 0 || fault.kind == FINAL {
                let error = Error::new(Kind::Missing, format!("judge {}: {}", self.place, fault.message));
                return Err(
                    error.hint("what was judged before is kept; see `timeout`, `retries` and `batch` of judge(..)")
                );
            }
            warn_once(&fault.message, &format!("judge {}: {}; it is asked again", self.place, fault.message));
            wait(pause)?;
            pause *= 2;
        }
        unreachable!("the last try ends it")
    }

    fn ask_once(&self, question: String) -> Result<String> {
        let mut clerk = self.clerk.lock();
        let asked = match &mut *clerk {
            Some(clerk) => clerk,
            none => none.insert(Clerk::new(&self.place, &self.manner)?),
        };
        let answer = asked.ask(question, self.manner.timeout);
        if answer.is_err() {
            *clerk = None; // the next question has a new one
        }
        answer
    }

    /// The scores in an answer, one finite number for each image.
    fn hear(&self, answer: &str, count: usize) -> Result<Vec<f64>> {
        let start: String = answer.chars().take(80).collect();
        let Ok(value) = serde_json::from_str::<Value>(answer) else {
            bail!(Value, "expected JSON, got \"{start}\"");
        };
        let scores = match &self.manner.hear {
            Some(hear) => hear(&value)?,
            None => {
                let list = value.get("scores").unwrap_or(&value).as_array();
                let Some(scores) = list.and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>())
                else {
                    bail!(Value, "expected {{\"scores\": [..]}} or a list of numbers, got {start}");
                };
                scores
            }
        };
        if scores.len() != count || scores.iter().any(|score| !score.is_finite()) {
            let got = match scores.get(..SHOWN) {
                Some(first) if scores.len() > count => {
                    format!("{} scores, the first {SHOWN} being {first:?}", scores.len())
                }
                _ => format!("{scores:?}"),
            };
            bail!(Value, "expected {count} finite scores, one for each image, got {got}");
        }
        Ok(scores)
    }
}

impl Reward for Judge {
    fn compute(&self, batch: &Batch) -> Result<Tensor> {
        if batch.images.requires_grad() {
            bail!(Value, "judge: a gradient is wanted, and what is judged outside has none";
                hint: "train with a method that asks for values alone, such as `flow_grpo`, or measure with `judge.score(images.detach(), prompts)`");
        }
        if batch.images.trace().is_some() {
            return batch.images.mean((1, 2, 3)); // a plan asks nobody
        }
        let count = batch.images.dim(0)?;
        let one = |i| image::png(&image::to_rgb(&batch.images.narrow(0, i, 1)?)?, &BTreeMap::new());
        let images = (0..count).map(one).collect::<Result<Vec<_>>>()?;
        let scores = self.judge(batch.prompts, &images)?;
        let scores = scores.into_iter().map(|score| score as f32).collect::<Vec<_>>();
        Tensor::from_vec(scores, count, batch.images.device())
    }

    fn describe(&self) -> String {
        format!("judge {}", self.place)
    }
}

/// Waits, unless a stop is asked for.
fn wait(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        Context::current().interrupt.check()?;
        std::thread::sleep(GLANCE.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// A thread that asks, so that its question can be given up; and the program that it asks, which ends with it and all that it started.
struct Clerk {
    questions: Sender<String>,
    answers: Receiver<Result<String>>,
    #[expect(dead_code, reason = "held, not used")]
    program: Option<Program>,
}

impl Clerk {
    fn new(place: &Place, manner: &Manner) -> Result<Self> {
        let (questions, asked) = channel::<String>();
        let (told, answers) = channel();
        let (program, mut way) = match place {
            Place::Url(url) => (None, by_http(url.clone(), manner)),
            Place::Program(words) => {
                let (program, way) = by_program(words)?;
                (Some(program), way)
            }
        };
        let work = move || {
            while let Ok(question) = asked.recv()
                && told.send(way(&question)).is_ok()
            {}
        };
        match std::thread::Builder::new().name("judge".into()).spawn(work) {
            Ok(_) => Ok(Self { questions, answers, program }),
            Err(e) => bail!(Internal, "no thread to ask it on ({e})"),
        }
    }

    fn ask(&mut self, question: String, timeout: Duration) -> Result<String> {
        let gone = || Error::new(Kind::Missing, "it has ended");
        self.questions.send(question).map_err(|_| gone())?;
        let end = Instant::now() + timeout;
        loop {
            Context::current().interrupt.check()?;
            match self.answers.recv_timeout(GLANCE) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(RecvTimeoutError::Timeout) if Instant::now() > end => {
                    bail!(Missing, "no answer in {} s", timeout.as_secs_f64())
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// How a question gets to its answer.
type Way = Box<dyn FnMut(&str) -> Result<String> + Send>;

/// By POST. What leads elsewhere is not followed, since another host may not be allowed.
fn by_http(url: String, manner: &Manner) -> Way {
    let config =
        ureq::Agent::config_builder().max_redirects(0).timeout_global(Some(manner.timeout)).http_status_as_error(false);
    let (agent, headers) = (ureq::Agent::from(config.build()), manner.headers.clone());
    Box::new(move |question| {
        let request = headers.iter().fold(agent.post(&url), |request, (name, value)| request.header(name, value));
        let failed = |e: ureq::Error| Error::new(Kind::Missing, e.to_string());
        let mut answer = request.content_type("application/json").send(question).map_err(failed)?;
        let text = answer.body_mut().with_config().limit(ANSWER).read_to_string().map_err(failed)?;
        match answer.status() {
            status if status.is_success() => Ok(text),
            status => {
                let told: String = text.chars().take(200).collect();
                // what is refused once is refused again, but for haste
                let haste = [408, 429].contains(&status.as_u16());
                let refused = status.is_redirection() || status.is_client_error() && !haste;
                let kind = if refused { FINAL } else { Kind::Missing };
                Err(Error::new(kind, format!("status {status}: {told}")))
            }
        }
    })
}

/// By a line on its standard input, answered by one on its output.
fn by_program(words: &[String]) -> Result<(Program, Way)> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let started = Context::current().programs.start(&mut command);
    let mut program = started.map_err(|e| Error::new(FINAL, format!("cannot run it ({e})")))?;
    let (Some(mut input), Some(output)) = (program.child.stdin.take(), program.child.stdout.take()) else {
        bail!(Internal, "the program has no pipes");
    };
    let mut output = BufReader::new(output);
    let failed = |e: std::io::Error| Error::new(Kind::Missing, format!("the program does not answer ({e})"));
    let way = move |question: &str| {
        input.write_all(format!("{question}\n").as_bytes()).and_then(|()| input.flush()).map_err(failed)?;
        let mut line = String::new();
        match output.by_ref().take(ANSWER).read_line(&mut line).map_err(failed)? {
            0 => bail!(Missing, "the program ended without an answer"),
            _ => Ok(line),
        }
    };
    Ok((program, Box::new(way)))
}
