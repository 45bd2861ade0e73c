//! Chapter `judge`: rewards that a server or a program gives.

use super::callback::Callback;
use super::*;
use crate::options;
use amscript_reward::RewardModel;
use amscript_reward::judge::{Judge, Manner, Place};
use std::time::Duration;

options! {
    /// How a judge is asked.
    pub struct JudgeOptions {
        /// Most images of a question.
        batch: usize = 16,
        /// Seconds for a question.
        timeout: f64 = 60.0,
        /// How often a question is asked again that had no answer, or one that is none.
        retries: usize = 3,
        /// Headers of each request, such as `#{ Authorization: "Bearer .." }`.
        headers: Map = Map::new(),
        /// A closure from prompts and images, PNG in base64, to the question, if it is not `#{ prompts: .., images: .. }`.
        ask: Dynamic = Dynamic::UNIT,
        /// A closure from the answer to the scores, if it is neither `#{ scores: [..] }` nor the scores.
        read: Dynamic = Dynamic::UNIT,
    }
}

/// A program is an array of words, an address a text.
fn place(value: &Dynamic) -> Result<Place> {
    let words = value.read_lock::<Array>().map(|words| words.iter().map(Dynamic::to_string).collect());
    match (words, value.is_string()) {
        (Some(words), _) => Ok(Place::Program(words)),
        (None, true) => Ok(Place::Url(value.to_string())),
        _ => bail!(
            Type,
            "judge: expected an address or an array of a program and its arguments, got {}",
            option::show(value)
        ),
    }
}

fn closure(context: &NativeCallContext, name: &str, value: Dynamic) -> Result<Option<Callback>> {
    let shown = option::show(&value);
    match value.try_cast_result::<FnPtr>() {
        Ok(closure) => Ok(Some(Callback::new(context, "judge", closure))),
        Err(value) if value.is_unit() => Ok(None),
        Err(_) => bail!(Option, "judge: `{name}` must be a closure, got {shown}"),
    }
}

fn manner(context: &NativeCallContext, options: Map) -> Result<Manner> {
    let o = JudgeOptions::parse("judge", options)?;
    let (ask, read) = (closure(context, "ask", o.ask)?, closure(context, "read", o.read)?);
    if o.batch == 0 || !(0.001..=1e6).contains(&o.timeout) || o.retries > 20 {
        bail!(
            Option,
            "judge: expected batch of 1 or more, timeout between 0.001 and 1e6, at most 20 retries, got {}, {}, {}",
            o.batch,
            o.timeout,
            o.retries
        );
    }
    let texts = |texts: &[String]| texts.iter().map(|text| text.clone().into()).collect::<Array>();
    Ok(Manner {
        batch: o.batch,
        timeout: Duration::from_secs_f64(o.timeout),
        retries: o.retries,
        headers: o.headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        ask: ask.map(|ask| -> amscript_reward::judge::Ask {
            Box::new(move |prompts, images| {
                model::json(&ask.call::<Map>((texts(prompts), texts(images)))?, "judge: the closure `ask`")
            })
        }),
        hear: read.map(|read| -> amscript_reward::judge::Hear {
            Box::new(move |answer| read.call::<Vec<f64>>((result::value(answer),)))
        }),
    })
}

/// Rewards from outside: a server's, a program's.
#[allow(clippy::unwrap_used)] // in rhai's macro, for receivers it has checked
#[export_module(manifest)]
pub mod judge {
    use super::*;

    /// A reward that an HTTP server gives, or a program; by value alone, for methods such as `flow_grpo` and for measuring.
    ///
    /// A question is JSON, `{"prompts": [..], "images": [..]}` with images as PNG in base64; the answer is `{"scores": [..]}` or the
    /// list, a finite number for each image. A server is asked by POST, a program, given as an array of words, by lines on its
    /// standard input; it stays until the run ends. An image is judged once under its prompt, and what has no answer in time,
    /// or a wrong one, is asked again before it is an error. Redirects are not followed. It needs `--allow-net=HOST` or
    /// `--allow-run=PROGRAM`.
    ///
    /// ```rhai
    /// judge("http://localhost:8000/score")   //=> error: a recipe may not reach the host localhost
    /// judge(["python3", "geneval.py"])       //=> error: a recipe may not run the program python3
    /// judge("localhost")                     //=> error: may not reach the host localhost
    /// ```
    /// ```rhai no_run
    /// let count = judge("http://localhost:8000/score", #{ batch: 32, timeout: 120 });
    /// let model = judge("https://api.example.org/v1/chat/completions", #{
    ///     batch: 1,
    ///     headers: #{ Authorization: "Bearer ..." },
    ///     ask: |prompts, images| #{ model: "judge-1", messages: [#{ role: "user", content: [
    ///         #{ type: "text", text: "From 0 to 10, how well does this show \"" + prompts[0] + "\"? Answer with the number." },
    ///         #{ type: "image_url", image_url: #{ url: "data:image/png;base64," + images[0] } },
    ///     ] }] },
    ///     read: |answer| [parse_float(answer.choices[0].message.content)],
    /// });
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn judge(context: NativeCallContext, place: Dynamic, options: Map) -> RhaiResultOf<RewardModel> {
        let place = super::place(&place)?;
        Ok(RewardModel::new(Judge::new(place, manner(&context, options)?)?))
    }
}
