//! The 1000 classes of ImageNet-1k in their usual order, and the sentence about each that text-image rewards judge by.

use super::Prompts;
use amscript_base::bail;
use amscript_base::error::Result;
use std::sync::LazyLock;

/// Names that take no article: plurals, materials, dishes.
const BARE: [&str; 32] = [
    "binoculars",
    "broccoli",
    "carbonara",
    "chain mail",
    "chocolate sauce",
    "clogs",
    "consomme",
    "coral fungus",
    "corn",
    "dough",
    "eggnog",
    "espresso",
    "face powder",
    "guacamole",
    "hair spray",
    "hay",
    "ice cream",
    "jeans",
    "lotion",
    "mashed potato",
    "pajamas",
    "parallel bars",
    "perfume",
    "rapeseed",
    "red wine",
    "sunglasses",
    "sunscreen",
    "swimming trunks",
    "tights",
    "toilet paper",
    "velvet",
    "wool",
];

/// Names by label, 0 to 999.
pub fn class_names() -> &'static [&'static str] {
    static NAMES: LazyLock<Vec<&str>> =
        LazyLock::new(|| include_str!("../../../../assets/imagenet_classes.txt").lines().collect());
    &NAMES
}

/// `a photo of a goldfish`.
fn sentence(name: &str) -> String {
    let vowel = name.starts_with(['a', 'e', 'i', 'o', 'u']) && !["unicycle", "one-piece swimsuit"].contains(&name);
    match (BARE.contains(&name), vowel || name == "hourglass") {
        (true, _) => format!("a photo of {name}"),
        (_, true) => format!("a photo of an {name}"),
        (_, false) => format!("a photo of a {name}"),
    }
}

/// A sentence for each class, by label.
pub fn class_prompts() -> Result<Prompts> {
    Prompts::from_list("imagenet classes", class_names().iter().map(|name| sentence(name)).collect())
}

/// The sentences of these labels.
pub fn prompts_of(labels: &[usize]) -> Result<Vec<String>> {
    let of = |label: &usize| match class_names().get(*label) {
        Some(name) => Ok(sentence(name)),
        None => bail!(Value, "class_prompts: labels must lie in 0..{}, got {label}", class_names().len()),
    };
    labels.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_thousand_different_plain_names() {
        let names = class_names();
        assert_eq!((names.len(), names.iter().collect::<BTreeSet<_>>().len()), (1000, 1000));
        let plain =
            |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || "- '".contains(c)) && name.trim() == *name;
        assert!(names.iter().all(plain));
        assert!(BARE.iter().all(|name| names.contains(name)));
        for (label, name) in [(1, "goldfish"), (207, "golden retriever"), (388, "giant panda"), (980, "volcano")] {
            assert_eq!(names[label], name);
        }
    }

    #[test]
    fn sentences_have_the_right_article() {
        let said = |label| prompts_of(&[label]).unwrap().remove(0);
        assert_eq!(said(1), "a photo of a goldfish");
        assert_eq!(said(386), "a photo of an african elephant");
        assert_eq!(said(604), "a photo of an hourglass");
        assert_eq!(said(880), "a photo of a unicycle");
        assert_eq!(said(608), "a photo of jeans");
        assert!(prompts_of(&[1000]).unwrap_err().message.contains("0..1000, got 1000"));
    }
}
