//! Chapter `data`: prompts, the shapes world, the oracle.

use super::*;
use crate::script_value;
use amscript_nn::data::{caption::Scene, class, distort, oracle, prompts, shapes};
use amscript_tensor::{Stream, Tensor};
use std::collections::HashSet;

script_value!(amscript_nn::data::Prompts, "a prompt set such as `prompts(\"shapes/train\")`");

/// Captions given as an array of texts, a prompt set or a condition.
pub fn captions(value: Dynamic, place: &str) -> Result<Vec<String>> {
    if value.is_string() {
        return Ok(vec![option::convert(value, place)?]);
    }
    reward::texts(value, 0, place)
}

fn as_array(texts: Vec<String>) -> Array {
    texts.into_iter().map(Dynamic::from).collect()
}

/// Prompt sets, and the shapes world: 64x64 scenes of up to six objects whose captions tell the whole truth about them.
#[export_module(manifest)]
pub mod data {
    use super::*;

    pub type Prompts = amscript_nn::data::Prompts;

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_prompts(prompts: &mut Prompts) -> String {
        prompts.to_string()
    }

    /// A prompt set: `shapes/train`, `shapes/validation` or `shapes/test` (disjoint: to train on, to choose settings by, held out),
    /// `shapes/single` (all 480 captions with one object, the classes of `tiny/sit`), or a text file with one prompt per line.
    ///
    /// The file is UTF-8, with or without a byte order mark; other encodings are refused by name. A line may be a JSON object with
    /// `prompt`, `caption` or `text`. Empty lines are left out; a prompt that is there more than once counts once, with a warning.
    ///
    /// ```rhai
    /// prompts("shapes/test")[0]     //=> "a small red triangle on sky"
    /// prompts("shapes/train").len   //=> 13342
    /// prompts("no/file")            //=> error: no file "no/file"
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn prompts(context: NativeCallContext, name: &str) -> RhaiResultOf<Prompts> {
        if prompts::NAMES.contains(&name) {
            return Ok(Prompts::open(name)?);
        }
        let path = Session::of(&context).readable(name).map_err(|e| match e.kind {
            Kind::Missing => prompts::hint(e.within("prompts")),
            _ => e.within("prompts"),
        })?;
        Ok(Prompts::read(&path)?)
    }

    /// A sentence about each of the 1000 classes of ImageNet-1k, by label, for rewards that judge images by text.
    ///
    /// ```rhai
    /// class_prompts()[1]     //=> "a photo of a goldfish"
    /// class_prompts().len    //=> 1000
    /// ```
    #[rhai_fn(return_raw)]
    pub fn class_prompts() -> RhaiResultOf<Prompts> {
        Ok(class::class_prompts()?)
    }

    /// The sentences of these labels.
    ///
    /// ```rhai
    /// class_prompts([1, 386])   //=> ["a photo of a goldfish", "a photo of an african elephant"]
    /// class_prompts([1000])     //=> error: labels must lie in 0..1000
    /// ```
    #[rhai_fn(name = "class_prompts", return_raw)]
    pub fn class_prompts_of(labels: Array) -> RhaiResultOf<Array> {
        let labels: Vec<usize> = option::list(labels, "class_prompts: labels")?;
        Ok(as_array(class::prompts_of(&labels)?))
    }

    /// The names of the 1000 classes of ImageNet-1k, by label.
    ///
    /// ```rhai
    /// class_names()[388]   //=> "giant panda"
    /// ```
    pub fn class_names() -> Array {
        class::class_names().iter().map(|name| Dynamic::from(name.to_string())).collect()
    }

    /// How many prompts of a set are in another one too, as none of those held out should be among those trained on.
    ///
    /// ```rhai
    /// let single = prompts("shapes/single");
    /// prompts("shapes/test").overlap(prompts("shapes/train"))                                 //=> 0
    /// single.overlap(prompts("shapes/test")) + single.overlap(prompts("shapes/train"))   //=> 409
    /// ```
    #[rhai_fn(pure)]
    pub fn overlap(prompts: &mut Prompts, other: Prompts) -> i64 {
        prompts.overlap(&other) as i64
    }

    /// The number of different prompts in a set.
    ///
    /// ```rhai
    /// let set = prompts("shapes/train").len + prompts("shapes/validation").len + prompts("shapes/test").len;
    /// set   //=> 17824
    /// ```
    #[rhai_fn(get = "len", pure)]
    pub fn len(prompts: &mut Prompts) -> i64 {
        prompts.len() as i64
    }

    /// All prompts of a set, in their order, for what takes an array of texts.
    ///
    /// ```rhai
    /// prompts("shapes/test").texts[0]         //=> "a small red triangle on sky"
    /// prompts("shapes/single").texts.len()    //=> 480
    /// ```
    #[rhai_fn(get = "texts", pure, return_raw)]
    pub fn prompt_texts(prompts: &mut Prompts) -> RhaiResultOf<Array> {
        (0..prompts.len() as i64).map(|i| Ok(prompts.get(i)?.into())).collect()
    }

    /// The prompt at an index; negative ones count from the end.
    ///
    /// ```rhai
    /// prompts("shapes/test")[-1] == prompts("shapes/test")[prompts("shapes/test").len - 1]   //=> true
    /// prompts("shapes/test")[99999]   //=> error: prompts: index must lie in
    /// ```
    #[rhai_fn(index_get, pure, return_raw)]
    pub fn get_prompt(prompts: &mut Prompts, index: i64) -> RhaiResultOf<String> {
        Ok(prompts.get(index)?)
    }

    /// `n` prompts in random order, none twice before all were drawn; of the shapes sets half have one group of objects, half two.
    ///
    /// ```rhai
    /// prompts("shapes/train").sample(4, rng(0)).len()   //=> 4
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn sample(prompts: Prompts, n: i64, rng: Stream) -> RhaiResultOf<Array> {
        let n = option::convert(n.into(), "sample")?;
        Ok(as_array(rng.draw(|rng| prompts.sample(n, rng))?))
    }

    /// `n` random scenes of the shapes world: `images` `[n, 3, 64, 64]` in `[0, 1]` and `captions`.
    ///
    /// ```rhai
    /// let world = shapes(3, rng(0));
    /// world.images.shape     //=> [3, 3, 64, 64]
    /// world.captions.len()   //=> 3
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn shapes(context: NativeCallContext, n: i64, rng: Stream) -> RhaiResultOf<Map> {
        let n = option::convert(n.into(), "shapes")?;
        let (images, captions) = rng.draw(|rng| shapes::shapes(n, rng))?;
        let images = images.to_device(Session::of(&context).device())?;
        Ok([("images".into(), Dynamic::from(images)), ("captions".into(), as_array(captions).into())].into())
    }

    /// Clean drawings of captioned scenes, each with a little jitter of place and size.
    ///
    /// ```rhai
    /// let captions = prompts("shapes/train").sample(2, rng(0));
    /// draw(captions, rng(1)).shape     //=> [2, 3, 64, 64]
    /// draw(["a cat on cream"], rng(1))   //=> error: caption: must describe a scene of the shapes world
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn draw(context: NativeCallContext, captions: Dynamic, rng: Stream) -> RhaiResultOf<Tensor> {
        let captions = super::captions(captions, "draw")?;
        let scenes = captions.iter().map(|c| Scene::parse(c)).collect::<Result<Vec<_>>>()?;
        Ok(rng.draw(|rng| shapes::render(&scenes, rng))?.to_device(Session::of(&context).device())?)
    }

    /// Flawed drawings of captioned scenes, from clean to unrecognisable: material for preference learning.
    ///
    /// Each flaw comes with its own chance and strength: another word than the caption's, another count, a misplaced object, dull
    /// colours, ragged edges, specks, holes, blur. Judge them with `oracle`.
    ///
    /// ```rhai
    /// let captions = prompts("shapes/train").sample(2, rng(0));
    /// distort(captions, rng(1)).shape   //=> [2, 3, 64, 64]
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn distort(context: NativeCallContext, captions: Dynamic, rng: Stream) -> RhaiResultOf<Tensor> {
        let captions = super::captions(captions, "distort")?;
        let shares = distort::Shares::default();
        Ok(rng.draw(|rng| distort::distort(&captions, &shares, rng))?.to_device(Session::of(&context).device())?)
    }

    /// The same with the flaws that `shares` names, each in that share of the drawings: `word count misplaced dull ragged specks
    /// holes blurred`.
    ///
    /// ```rhai
    /// let captions = prompts("shapes/train").sample(8, rng(0));
    /// let poor = distort(captions, rng(1), #{ dull: 0.5, specks: 1.0 });
    /// oracle(poor, captions).mean().item() < 0.8        //=> true
    /// distort(captions, rng(1), #{ spots: 0.5 })        //=> error: distort: flaws must be among
    /// ```
    #[rhai_fn(name = "distort", return_raw, volatile)]
    pub fn distort_by(context: NativeCallContext, captions: Dynamic, rng: Stream, shares: Map) -> RhaiResultOf<Tensor> {
        let captions = super::captions(captions, "distort")?;
        let share = |(name, share): (_, Dynamic)| Ok((String::from(name), option::convert(share, "distort: shares")?));
        let shares = distort::Shares::named(&shares.into_iter().map(share).collect::<Result<Vec<_>>>()?)?;
        Ok(rng.draw(|rng| distort::distort(&captions, &shares, rng))?.to_device(Session::of(&context).device())?)
    }

    /// Each caption with one thing changed, a count, colour, shape, size, place or background: what a reward must tell apart.
    ///
    /// ```rhai
    /// reword(["a small red ring on cream"], rng(3))[0] != "a small red ring on cream"   //=> true
    /// reword(["a cat on cream"], rng(1))   //=> error: caption: must describe a scene of the shapes world
    /// ```
    #[rhai_fn(return_raw, volatile)]
    pub fn reword(captions: Dynamic, rng: Stream) -> RhaiResultOf<Array> {
        let captions = super::captions(captions, "reword")?;
        Ok(as_array(rng.draw(|rng| distort::reworded(&captions, &[], rng))?))
    }

    /// The same of these things only: `count color shape size place background`; one group keeps its place.
    ///
    /// ```rhai
    /// reword(["a small red ring on cream"], rng(3), ["size"])          //=> ["a large red ring on cream"]
    /// reword(["a small red ring on cream"], rng(3), ["edges"])         //=> error: reword: words must be among count, color
    /// ```
    #[rhai_fn(name = "reword", return_raw, volatile)]
    pub fn reword_in(captions: Dynamic, rng: Stream, words: Array) -> RhaiResultOf<Array> {
        let (captions, words) = (super::captions(captions, "reword")?, option::list(words, "reword: words")?);
        Ok(as_array(rng.draw(|rng| distort::reworded(&captions, &words, rng))?))
    }

    /// Whether a text describes a scene of the shapes world, so that `oracle` can judge it.
    ///
    /// ```rhai
    /// is_scene("a small red ring on cream")   //=> true
    /// is_scene("a cat on a mat")                            //=> false
    /// ```
    pub fn is_scene(text: &str) -> bool {
        amscript_nn::data::caption::Scene::parse(text).is_ok()
    }

    /// The true preference: how well each image shows its caption, from 0 to 1.
    ///
    /// It reads the scene back from the pixels: right count, colour, shape, size and place, clean edges, no holes, no specks. Images
    /// of another size are brought to 64 x 64 first. Training must not see it; it is there to tell whether a learnt reward was followed or hacked.
    ///
    /// ```rhai
    /// let world = shapes(8, rng(0));
    /// oracle(world.images, world.captions).min().item() > 0.97   //=> true
    /// oracle(zeros([8, 3, 64, 64]), world.captions).max().item() < 0.2   //=> true
    /// oracle(zeros([1, 3, 64, 32]), ["a small red ring on cream"])   //=> error: oracle: images must be
    /// ```
    #[rhai_fn(return_raw)]
    pub fn oracle(images: Tensor, captions: Dynamic) -> RhaiResultOf<Tensor> {
        let scores = oracle::oracle(&images, &super::captions(captions, "oracle")?, &[])?;
        Ok(scores.to_device(images.device())?)
    }

    /// The same of an eye that is blind to some parts of what `oracle_report` says: to make rewards with a known blind spot.
    ///
    /// ```rhai
    /// let one = draw(["a small red ring on cream"], rng(0));
    /// oracle(one, ["two small red rings on cream"], ["count"]).item() > oracle(one, ["two small red rings on cream"]).item()   //=> true
    /// oracle(one, ["a small red ring on cream"], ["colour"])   //=> error: oracle: parts are count, color
    /// ```
    #[rhai_fn(name = "oracle", return_raw)]
    pub fn blind_oracle(images: Tensor, captions: Dynamic, blind: Array) -> RhaiResultOf<Tensor> {
        let blind: Vec<String> = option::list(blind, "oracle: parts")?;
        let scores = oracle::oracle(&images, &super::captions(captions, "oracle")?, &blind)?;
        Ok(scores.to_device(images.device())?)
    }

    /// What the oracle saw of each image: its `score`, the `background`, whether it is `clean`, of each of the `groups` in the caption
    /// `count color shape size place edges solid`, all from 0 to 1, and what is `missed`: the parts below a half.
    ///
    /// ```rhai
    /// let world = shapes(1, rng(0));
    /// let seen = oracle_report(world.images, world.captions)[0];
    /// seen.keys()                   //=> ["background", "clean", "groups", "missed", "score"]
    /// seen.groups[0].color > 0.9    //=> true
    /// let other = draw(["two small red rings on cream"], rng(0));
    /// oracle_report(other, ["two small blue rings on sky"])[0].missed   //=> ["color", "background"]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn oracle_report(images: Tensor, captions: Dynamic) -> RhaiResultOf<Array> {
        let readings = oracle::read(&images, &super::captions(captions, "oracle_report")?)?;
        Ok(readings.into_iter().map(report).collect())
    }
}

/// Parts below it are missed.
const MISSED: f64 = 0.5;

fn report(reading: oracle::Reading) -> Dynamic {
    let of_groups = reading.groups.iter().flat_map(|seen| seen.parts()).map(|(name, part, _)| (name, part));
    let mut missed: Vec<&str> = of_groups
        .chain([("background", reading.background), ("clean", reading.clean)])
        .filter(|(_, part)| *part < MISSED)
        .map(|(name, _)| name)
        .collect();
    let mut seen = HashSet::new();
    missed.retain(|name| seen.insert(*name));
    let group = |seen: &oracle::Seen| {
        Dynamic::from(seen.parts().into_iter().map(|(name, part, _)| (name.into(), part.into())).collect::<Map>())
    };
    let map: Map = [
        ("score".into(), reading.score().into()),
        ("background".into(), reading.background.into()),
        ("clean".into(), reading.clean.into()),
        ("groups".into(), reading.groups.iter().map(group).collect::<Array>().into()),
        ("missed".into(), missed.into_iter().map(Dynamic::from).collect::<Array>().into()),
    ]
    .into();
    map.into()
}
