//! Prompt sets: named ones of the shapes world, or a text file with one prompt per line.

use super::{
    caption::{Count, Part, Scene},
    lines, shapes,
};
use amscript_base::{
    bail,
    error::{Error, Kind, Result, warn_once},
    file, input, memory,
};
use amscript_tensor::Rng;
use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, OnceLock},
};

/// Prompts in groups; sampling takes from each group equally often, indexing runs through them in order.
#[derive(Clone, Debug)]
pub struct Prompts {
    pub name: String,
    groups: Arc<Vec<Vec<String>>>,
}

/// Names that are not files.
pub const NAMES: [&str; 4] = ["shapes/train", "shapes/validation", "shapes/test", "shapes/single"];

/// Adds the names of the known sets to what is hinted already.
pub fn hint(mut error: Error) -> Error {
    let known = format!("one prompt per line; known sets are {}", NAMES.map(|n| format!("`{n}`")).join(", "));
    let said = error.hint.take().map_or(known.clone(), |hint| format!("{hint}; {known}"));
    error.hint(said)
}

impl std::fmt::Display for Prompts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "prompts({}, {} of them)", self.name, self.len())
    }
}

impl Prompts {
    /// A named set, or a file with one prompt per line (empty lines skipped).
    pub fn open(name: &str) -> Result<Prompts> {
        match name {
            "shapes/train" => Ok(Self { name: name.into(), groups: split(Part::Train).clone() }),
            "shapes/validation" => Ok(Self { name: name.into(), groups: split(Part::Validation).clone() }),
            "shapes/test" => Ok(Self { name: name.into(), groups: split(Part::Test).clone() }),
            "shapes/single" => {
                let single = |s: &Scene| s.first.count == Count::One;
                Self::from_list(name, Scene::all().iter().filter(|s| single(s)).map(Scene::caption).collect())
            }
            _ => Self::read(Path::new(name)),
        }
    }

    pub fn from_list(name: &str, prompts: Vec<String>) -> Result<Prompts> {
        if prompts.is_empty() {
            bail!(Value, "prompts: must hold at least one prompt, got none in `{name}`");
        }
        Ok(Self { name: name.into(), groups: Arc::new(vec![prompts]) })
    }

    /// A text file in UTF-8 with one prompt per line (empty lines skipped), or with a JSON object per line that has a `prompt`. What
    /// is there more than once counts once, so that their number is that of different prompts.
    pub fn read(path: &Path) -> Result<Prompts> {
        let name = path.display().to_string();
        let bytes = file::read(path).and_then(|bytes| input::note(path).map(|()| bytes)).map_err(|e| {
            let message = format!("prompts: must be a file or a known set, got `{name}` ({e})");
            hint(Error::new(Kind::Missing, message))
        })?;
        let all = lines::prompts(&bytes).map_err(|e| e.within(format_args!("prompts: `{name}`")))?;
        let mut seen = HashSet::new();
        let different: Vec<String> = all.iter().filter(|prompt| seen.insert(prompt.as_str())).cloned().collect();
        if different.len() < all.len() {
            let message = format!(
                "prompts: `{name}` has {} prompts, {} different ones, which count once",
                all.len(),
                different.len()
            );
            warn_once(&message, &message);
        }
        Self::from_list(&name, different)
    }

    /// How many prompts are also in another set.
    pub fn overlap(&self, other: &Prompts) -> usize {
        let theirs: HashSet<&String> = other.groups.iter().flatten().collect();
        self.groups.iter().flatten().filter(|prompt| theirs.contains(prompt)).count()
    }

    pub fn len(&self) -> usize {
        self.groups.iter().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The prompt at `index`; negative counts from the end.
    pub fn get(&self, index: i64) -> Result<String> {
        let len = self.len() as i64;
        let wanted = if index < 0 { index + len } else { index };
        match usize::try_from(wanted).ok().and_then(|i| self.groups.iter().flatten().nth(i)) {
            Some(prompt) => Ok(prompt.clone()),
            None => bail!(Value, "prompts: index must lie in -{len}..{len}, got {index}"),
        }
    }

    /// `n` prompts in random order, from each group equally often, none twice before its group is used up.
    pub fn sample(&self, n: usize, rng: &mut Rng) -> Result<Vec<String>> {
        let longest = self.groups.iter().flatten().map(String::len).max().unwrap_or(0);
        // Each is copied twice, and once more for who asked.
        memory::room(memory::bytes(&[n, 3 * longest + 128], 1), || format!("sample of {n} prompts"))?;
        let groups = self.groups.len();
        let mut out = Vec::with_capacity(n);
        for (i, group) in self.groups.iter().enumerate() {
            let wanted = out.len() + n / groups + usize::from(i < n % groups);
            while out.len() < wanted {
                let picked = rng.distinct((wanted - out.len()).min(group.len()), group.len());
                out.extend(picked.into_iter().map(|j| group[j].clone()));
            }
        }
        Ok(rng.distinct(n, n).into_iter().map(|i| out[i].clone()).collect())
    }
}

/// Captions with two groups among which the parts are chosen: a fixed draw from the million there are.
const PAIRS: usize = 16_384;

/// Captions with one and with two groups, of one part.
fn split(part: Part) -> &'static Arc<Vec<Vec<String>>> {
    static PARTS: OnceLock<[Arc<Vec<Vec<String>>>; 3]> = OnceLock::new();
    let parts = PARTS.get_or_init(|| {
        let pairs = shapes::pairs(PAIRS, &mut Rng::new(0));
        [Part::Train, Part::Validation, Part::Test].map(|part| {
            let of = |scenes: &[Scene]| scenes.iter().filter(|s| s.part() == part).map(Scene::caption).collect();
            Arc::new(vec![of(&Scene::all()), of(&pairs)])
        })
    });
    &parts[part as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, io::Write};

    #[test]
    fn named_sets_are_disjoint_and_complete() {
        let sets = ["shapes/train", "shapes/validation", "shapes/test"].map(|name| Prompts::open(name).unwrap());
        let all: HashSet<&String> = sets.iter().flat_map(|s| s.groups.iter()).flatten().collect();
        assert_eq!(all.len(), sets.iter().map(Prompts::len).sum::<usize>());
        assert_eq!(all.len(), 1440 + PAIRS);
    }

    #[test]
    fn files_are_utf8_of_lines_or_of_json() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Prompts::read(&path).map(|p| (0..p.len()).map(|i| p.get(i as i64).unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(of(b"\xef\xbb\xbfa cat\r\n\n {b}\n").unwrap(), ["a cat", "{b}"]);
        assert_eq!(of(b"{\"prompt\": \" a \", \"id\": 1}\n{\"caption\": \"b\"}").unwrap(), ["a", "b"]);
        assert_eq!(of(b"a\nb\n a \n{\"prompt\": \"b\"}\nc").unwrap(), ["a", "b", "c"]); // each once
        for (bytes, word) in [
            (&b"\xff\xfea\0"[..], "UTF-16"),
            (b"caf\xe9", "another encoding"),
            (b"{\"id\": 1}", "line 1: JSON must have `prompt`"),
        ] {
            let error = of(bytes).unwrap_err();
            assert!(error.to_string().contains(word) && error.message.contains("prompts.txt"), "{error}");
        }
    }

    #[test]
    fn what_two_sets_share_is_counted() {
        let set = |prompts: &[&str]| Prompts::from_list("x", prompts.iter().map(|p| p.to_string()).collect()).unwrap();
        assert_eq!(set(&["a", "b", "c"]).overlap(&set(&["c", "d", "a"])), 2);
        assert_eq!(Prompts::open("shapes/test").unwrap().overlap(&Prompts::open("shapes/train").unwrap()), 0);
    }

    #[test]
    fn samples_are_balanced_and_do_not_repeat() {
        let set = Prompts::open("shapes/test").unwrap();
        let picked = set.sample(40, &mut Rng::new(1)).unwrap();
        assert_eq!(picked.iter().collect::<HashSet<_>>().len(), 40);
        assert_eq!(picked.iter().filter(|p| p.contains(" left of ") || p.contains(" above ")).count(), 20);
        assert_eq!(picked, set.sample(40, &mut Rng::new(1)).unwrap());
    }

    #[test]
    fn files_and_indices() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "one\n\n two ").unwrap();
        let set = Prompts::open(file.path().to_str().unwrap()).unwrap();
        assert_eq!((set.len(), set.get(-1).unwrap()), (2, "two".into()));
        assert!(set.get(2).unwrap_err().message.contains("got 2"));
        assert_eq!(set.sample(5, &mut Rng::new(2)).unwrap().len(), 5);
        assert!(Prompts::open("shapes/tset").unwrap_err().to_string().contains("shapes/train"));
    }
}
