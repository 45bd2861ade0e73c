//! Chapter `condition`: what a velocity is conditioned on.

use super::*;
use amscript_tensor::Tensor;

/// What a model is conditioned on, one row per sample: prompts, class labels, named tensors. `flow.encode(..)` makes it.
#[export_module(manifest)]
pub mod condition {
    use super::*;

    pub type Condition = amscript_align::flow::Condition;

    /// A condition from prompt embeddings `[batch, tokens, features]`.
    ///
    /// ```rhai
    /// condition(zeros([2, 24, 144])).embeddings.shape   //=> [2, 24, 144]
    /// ```
    #[rhai_fn(return_raw)]
    pub fn condition(embeddings: Tensor) -> RhaiResultOf<Condition> {
        if embeddings.rank() != 3 {
            return Err(Error::new(
                Kind::Shape,
                format!("condition: expected embeddings [batch, tokens, features], got {:?}", embeddings.dims()),
            )
            .into());
        }
        Ok(Condition::default().with(Condition::EMBEDDINGS, embeddings))
    }

    /// A condition of named tensors `[batch, ..]`, for families that read others than prompt embeddings.
    ///
    /// ```rhai
    /// condition(#{ embeddings: zeros([2, 24, 8]), pooled: zeros([2, 8]) })   //=> condition(embeddings [2, 24, 8], pooled [2, 8])
    /// condition(#{ pooled: 3 })   //=> error: condition: `pooled`: expected a tensor
    /// ```
    #[rhai_fn(name = "condition", return_raw)]
    pub fn condition_of(tensors: Map) -> RhaiResultOf<Condition> {
        let tensor = |(name, value)| {
            let place = format!("condition: `{name}`");
            Ok::<_, Error>((String::from(name), option::convert::<Tensor>(value, &place)?))
        };
        let tensors = tensors.into_iter().map(tensor).collect::<Result<_>>()?;
        Ok(Condition { tensors, ..Condition::default() })
    }

    #[rhai_fn(global, name = "to_string", name = "to_debug", pure)]
    pub fn show_condition(condition: &mut Condition) -> String {
        let tensors: Vec<_> = condition.tensors.iter().map(|(name, t)| format!("{name} {:?}", t.dims())).collect();
        match condition.text.first() {
            Some(first) => format!("condition({} prompts, {first:?}, ..)", condition.text.len()),
            None => format!("condition({})", tensors.join(", ")),
        }
    }

    /// The prompts of a condition.
    ///
    /// ```rhai
    /// condition(zeros([1, 4, 2])).text   //=> []
    /// ```
    #[rhai_fn(get = "text", pure)]
    pub fn condition_text(condition: &mut Condition) -> Array {
        condition.text.iter().map(|t| Dynamic::from(t.clone())).collect()
    }

    /// The number of samples of a condition, or () where it says nothing of any.
    ///
    /// ```rhai
    /// flow("tiny/sit").encode([3, 7]).repeat(2).len   //=> 4
    /// condition(#{}).len                              //=> ()
    /// ```
    #[rhai_fn(get = "len", pure)]
    pub fn condition_len(condition: &mut Condition) -> Dynamic {
        condition.samples().map_or(Dynamic::UNIT, |samples| Dynamic::from(samples as i64))
    }

    /// The class labels of a condition, or ().
    ///
    /// ```rhai
    /// flow("tiny/sit").encode(tensor([3, 7])).labels   //=> [3, 7]
    /// condition(zeros([1, 4, 2])).labels               //=> ()
    /// ```
    #[rhai_fn(get = "labels", pure)]
    pub fn condition_labels(condition: &mut Condition) -> Dynamic {
        let array = |labels: &Vec<u32>| labels.iter().map(|label| Dynamic::from(*label as i64)).collect::<Array>();
        condition.labels.as_ref().map_or(Dynamic::UNIT, |labels| array(labels).into())
    }

    /// The token ids `[batch, tokens]` of a condition, or ().
    ///
    /// ```rhai
    /// condition(zeros([1, 4, 2])).ids   //=> ()
    /// ```
    #[rhai_fn(get = "ids", pure)]
    pub fn condition_ids(condition: &mut Condition) -> Dynamic {
        condition.get(Condition::IDS).cloned().map_or(Dynamic::UNIT, Dynamic::from)
    }

    /// The embeddings `[batch, tokens, features]` of a condition, or ().
    ///
    /// ```rhai
    /// condition(zeros([1, 4, 2])).embeddings.shape   //=> [1, 4, 2]
    /// ```
    #[rhai_fn(get = "embeddings", pure)]
    pub fn condition_embeddings(condition: &mut Condition) -> Dynamic {
        condition.get(Condition::EMBEDDINGS).cloned().map_or(Dynamic::UNIT, Dynamic::from)
    }

    /// The tensors of a condition by name, each `[batch, ..]`: what the network of a family reads.
    ///
    /// ```rhai
    /// condition(zeros([1, 4, 2])).tensors.keys()                    //=> ["embeddings"]
    /// flow("tiny/flux2").encode("a small red ring").tensors.keys()  //=> ["embeddings", "ids"]
    /// ```
    #[rhai_fn(get = "tensors", pure)]
    pub fn condition_tensors(condition: &mut Condition) -> Map {
        condition.tensors.iter().map(|(name, tensor)| (name.into(), Dynamic::from(tensor.clone()))).collect()
    }

    /// A tensor of a condition by name, or ().
    ///
    /// ```rhai
    /// condition(#{ pooled: zeros([2, 8]) })["pooled"].shape   //=> [2, 8]
    /// condition(#{ pooled: zeros([2, 8]) })["ids"]            //=> ()
    /// ```
    #[rhai_fn(index_get, pure)]
    pub fn condition_tensor(condition: &mut Condition, name: &str) -> Dynamic {
        condition.get(name).cloned().map_or(Dynamic::UNIT, Dynamic::from)
    }

    /// The condition of some samples, by their places; one may come several times.
    ///
    /// ```rhai
    /// flow("tiny/sit").encode([3, 7, 9]).rows([2, 0, 0]).labels   //=> [9, 3, 3]
    /// flow("tiny/sit").encode([3, 7, 9]).rows([3])                //=> error: rows must be below 3, got 3
    /// flow("tiny/sit").encode([3, 7, 9]).rows([4294967296])       //=> error: rows must be below 3, got 4294967296
    /// ```
    #[rhai_fn(name = "rows", return_raw)]
    pub fn condition_rows(condition: Condition, rows: Array) -> RhaiResultOf<Condition> {
        let rows: Vec<usize> = option::list(rows, "rows")?;
        let most = condition.samples().unwrap_or(u32::MAX as usize);
        let small = |row: usize| {
            let error = || Error::new(Kind::Value, format!("condition: rows must be below {most}, got {row}"));
            u32::try_from(row).map_err(|_| error())
        };
        Ok(condition.rows(&rows.into_iter().map(small).collect::<Result<Vec<_>>>()?)?)
    }

    /// The condition with each sample `times` in a row: groups of samples for the same prompt.
    ///
    /// ```rhai
    /// flow("tiny/sit").encode([3, 7]).repeat(2).labels   //=> [3, 3, 7, 7]
    /// ```
    #[rhai_fn(name = "repeat", return_raw)]
    pub fn condition_repeat(condition: Condition, times: i64) -> RhaiResultOf<Condition> {
        Ok(condition.repeat(option::convert(times.into(), "repeat: times")?)?)
    }

    /// One condition behind another that holds the same things.
    ///
    /// ```rhai
    /// (flow("tiny/sit").encode([3]) + flow("tiny/sit").encode([7])).labels   //=> [3, 7]
    /// ```
    #[rhai_fn(name = "+", return_raw)]
    pub fn condition_cat(a: Condition, b: Condition) -> RhaiResultOf<Condition> {
        Ok(a.cat(&b)?)
    }
}
