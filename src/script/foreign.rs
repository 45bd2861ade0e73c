//! Words and signs of Python, PyTorch and C, and what is written here.

/// Words that stand for themselves.
const WORDS: &[(&str, &str)] = &[
    ("None", "write `()`"),
    ("True", "write `true`"),
    ("False", "write `false`"),
    ("nil", "write `()`"),
    ("null", "write `()`"),
    ("undefined", "write `()`"),
    ("not", "write `!x`"),
    ("and", "write `a && b`"),
    ("or", "write `a || b`"),
    ("is", "write `a == b`"),
    ("elif", "write `else if`"),
    ("def", "write `fn f(x) { .. }`"),
    ("function", "write `fn f(x) { .. }`"),
    ("func", "write `fn f(x) { .. }`"),
    ("lambda", "write `|x| ..`"),
    ("class", "there are no classes: write `fn f(x) { .. }`, and keep values in an object map `#{ a: 1 }`"),
    ("self", "there are no classes: give a function all that it needs"),
    ("raise", "write `throw \"what is wrong\"`"),
    ("except", "write `try { .. } catch (e) { .. }`"),
    ("pass", "leave it out: a block may be empty, `{}`"),
    ("var", "write `let x = ..`"),
    ("auto", "write `let x = ..`"),
    ("match", "write `switch x { 1 => .., _ => .. }`"),
    ("with", "leave it out: files are closed and gradients taken without it"),
    ("new", "leave it out: functions make values, such as `zeros([2, 3])`"),
    ("yield", "collect values in an array: `values.push(x)`"),
    ("inf", "write `infinity()`"),
    ("from", PACKAGES),
    ("torch", PACKAGES),
    ("numpy", PACKAGES),
    ("np", PACKAGES),
    ("nn", PACKAGES),
    ("jax", PACKAGES),
    ("math", PACKAGES),
];

const PACKAGES: &str = "leave it out: no package is needed, write `zeros([2, 3])` alone; `help()` lists what there is";

/// Functions and methods, where arguments of these types came first.
const FUNCTIONS: &[(&str, &str, &str)] = &[
    ("randn", "", "write `rng(0).normal([2, 3])`"),
    ("randn_like", "", "write `rng(0).normal(x.shape)`"),
    ("rand", "", "write `rng(0).uniform([2, 3])`"),
    ("random", "", "write `rng(0).uniform([2, 3])`"),
    ("randint", "", "write `rng(0).integers(10, [2, 3])`"),
    ("seed", "", SEED),
    ("manual_seed", "", SEED),
    ("zeros_like", "", "write `zeros(x.shape)`"),
    ("ones_like", "", "write `ones(x.shape)`"),
    ("array", "", "write `tensor([1, 2])` for numbers to compute with, `[1, 2]` for a list"),
    ("clone", "", VALUES),
    ("copy", "", VALUES),
    ("deepcopy", "", VALUES),
    ("contiguous", "", "leave it out: memory is laid out as it is needed"),
    ("no_grad", "", "leave it out: only `grad` and the methods take gradients; `x.detach()` cuts one off"),
    ("requires_grad_", "", "write `param(x)`"),
    ("zero_grad", "", "leave it out: each `opt.step(loss)` begins anew"),
    ("backward", "", "write `opt.step(loss)`, or `grad(|x| .., x)` for the gradient alone"),
    ("Adam", "", OPTIMIZER),
    ("AdamW", "", OPTIMIZER),
    ("SGD", "", OPTIMIZER),
    ("parameters", "", "write `model.params()`"),
    ("pow", "", "write `x ** 2`"),
    ("type", "", "write `type_of(x)`"),
    ("isinstance", "", "write `type_of(x) == \"Tensor\"`"),
    ("isnan", "", "write `x.is_nan()` of a number, `x.sum().item().is_nan()` to ask whether any of a tensor is"),
    ("where", "", "write `select(mask, a, b)`"),
    ("topk", "", "write `x.to_array().order_desc().extract(0, 3)` for the three highest numbers"),
    ("flip", "", "write `x[[[2, 1, 0]]]` for rows in another order"),
    ("tolist", "", "write `x.to_array()`"),
    ("numpy", "", "write `x.to_array()`"),
    ("size", "", SHAPE),
    ("numel", "", "write `x.shape.reduce(|n, side| n * side, 1)`, the product of the sides"),
    ("len", "Tensor", SHAPE),
    ("dim", "", "write `x.shape.len`"),
    ("view", "", "write `x.reshape([2, 3])`"),
    ("expand", "", "write `x.broadcast([2, 3])`"),
    ("t", "", TURNED),
    ("concat", "", "write `cat([a, b], 0)`"),
    ("cuda", "Tensor", "write `x.to(cuda(0))`"),
    ("cpu", "Tensor", "write `x.to(cpu())`"),
    ("to", "Tensor, string", "write `x.to(cuda(0))`, `x.to(cpu())` or `x.to(f32())`"),
    ("float", "Tensor", "write `x.to(f32())`"),
    ("float", "", "write `x.to_float()`"),
    ("int", "", "write `x.to_int()`"),
    ("str", "", "write `x.to_string()`, or `${x}` inside backticks"),
    ("append", "array", "write `a.push(x)`"),
    ("range", "integer", "write `0..10`"),
    ("enumerate", "", "write `for (x, i) in a { .. }`"),
    ("sorted", "", "write `a.sort()`"),
    ("print", "", ONE_TEXT),
    ("println", "", "write `print(x)`"),
    ("printf", "", ONE_TEXT),
    ("format", "", ONE_TEXT),
];

const SEED: &str = "write `rng(0)` where numbers are drawn, or give the run `--seed 0`";
const VALUES: &str = "leave it out: tensors, arrays and maps are values, another variable is a copy";
const OPTIMIZER: &str = "write `adamw(model.params(), #{ rate: 1e-3 })`";
const SHAPE: &str = "write `x.shape`, an array, or `x.shape[0]`";
const TURNED: &str = "write `x.transpose(0, 1)`";
const ONE_TEXT: &str = "make one text of them, in backticks: `a is ${a}, b is ${b}`";

const PROPERTIES: &[(&str, &str)] = &[
    ("T", TURNED),
    ("ndim", "write `x.shape.len`"),
    ("grad", "write `grad(|x| .., x)`: tensors keep no gradients"),
    ("data", "write `x.detach()`"),
    ("size", SHAPE),
    ("length", "write `a.len`"),
];

/// Options and what they are called here.
const OPTIONS: &[(&str, &str)] = &[("lr", "rate"), ("learning_rate", "rate"), ("r", "rank"), ("eps", "epsilon")];

fn row<'a>(table: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    table.iter().find(|(foreign, _)| *foreign == name).map(|(_, here)| *here)
}

/// What to write for a word that is no variable.
pub fn word(name: &str) -> Option<&'static str> {
    row(WORDS, name)
}

/// What to write for a call that no function takes.
pub fn function(name: &str, came: &[String]) -> Option<&'static str> {
    let came = came.join(", ");
    FUNCTIONS.iter().find(|(foreign, first, _)| *foreign == name && came.starts_with(first)).map(|row| row.2)
}

/// What to write for a property that is not there.
pub fn property(name: &str) -> Option<&'static str> {
    row(PROPERTIES, name)
}

/// The option that is meant, if it is one of those that are known.
pub fn option<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let meant = row(OPTIONS, name)?;
    known.iter().copied().find(|option| *option == meant)
}

/// What stands in a line before a place, the word that begins there, and what is behind that; lines and columns count from 1.
pub fn around(text: &str, line: usize, column: usize) -> Option<(&str, &str, &str)> {
    let here = text.lines().nth(line.checked_sub(1)?)?;
    let start = here.char_indices().nth(column.checked_sub(1)?).map_or(here.len(), |(byte, _)| byte);
    let (before, rest) = here.split_at(start);
    let (name, behind) = rest.split_at(rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()));
    Some((before.trim_end(), name, behind))
}

/// What to write where a text cannot be read, or names a variable that is not there.
pub fn syntax(text: &str, line: usize, column: usize) -> Option<&'static str> {
    let (before, name, behind) = around(text, line, column)?;
    match name {
        "" => sign(before, behind).or_else(|| quotient(text, line, before)),
        "f" if behind.starts_with(['"', '\'']) => Some("write `a is ${a}` in backticks, without the `f`"),
        "var" if before.ends_with('.') => Some("there is no variance: write `x.std() ** 2`"),
        "let" if before.ends_with('(') && before.contains("for") => Some("write `for i in 0..10 { .. }`"),
        _ => word(name).or_else(|| quotient(text, line, before)).or_else(|| assigned(before, behind)),
    }
}

/// `x = 3` of a variable that is not there.
fn assigned(before: &str, behind: &str) -> Option<&'static str> {
    let assigned = behind.trim_start().strip_prefix('=').is_some_and(|more| !more.starts_with('='));
    match open(before) {
        Some('(') if assigned => Some(NAMED),
        _ if assigned && before.is_empty() => Some("write `let` before a variable's first value"),
        _ => None,
    }
}

const NAMED: &str =
    "arguments have no names: write them in their order, and options as an object map `#{ rate: 1e-3 }`";

fn sign(before: &str, rest: &str) -> Option<&'static str> {
    let next = |signs: &str| rest.starts_with(signs);
    match open(before) {
        _ if next("'") => Some("write `\"text\"`: single quotes hold one character"),
        _ if next("#") => Some("write `// ..` for a comment"),
        _ if next("++") => Some("write `i += 1`"),
        _ if next("--") => Some("write `i -= 1`"),
        _ if next("?") => Some("write `if c { a } else { b }`"),
        Some('[') if next(":") => Some("write `x[0..3]` for a part"),
        Some('[') if next(",") => Some("write `x[[0, 1]]` for one number, `x[[[0, 1]]]` for two rows"),
        Some('{') if next(":") => Some("write `#{ a: 1 }` for an object map"),
        Some('(') if next("=") && !next("==") => Some(NAMED),
        None if next(":") && starts_block(before) => Some("write `{ .. }` around what belongs to it"),
        _ => None,
    }
}

fn starts_block(line: &str) -> bool {
    let first = line.trim_start().split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    ["if", "else", "for", "while", "try"].contains(&first)
}

/// The bracket that is open at the end of a line's beginning.
fn open(before: &str) -> Option<char> {
    let mut stack = vec![];
    for c in before.chars() {
        match c {
            '(' | '[' | '{' => stack.push(c),
            ')' | ']' | '}' => drop(stack.pop()),
            _ => {}
        }
    }
    stack.pop()
}

/// `let a = 3 // 2;`: the statement goes on in the next line, where Rhai misses its end.
fn quotient(text: &str, line: usize, before: &str) -> Option<&'static str> {
    let above = text.lines().take(line - 1).filter(|l| !l.trim().is_empty()).last().filter(|_| before.is_empty())?;
    let (code, comment) = above.split_once("//")?;
    let cut = !code.trim().is_empty() && !code.trim_end().ends_with([';', '{', '}', ',']);
    (cut && comment.trim_end().ends_with(';'))
        .then_some("`//` begins a comment: write `div(3, 2)` for a whole quotient")
}

#[cfg(test)]
mod tests {
    use super::super::catalog::Catalog;
    use super::*;

    #[test]
    fn no_row_hides_a_function_of_ours() {
        for (name, first, _) in FUNCTIONS.iter().filter(|(_, first, _)| first.is_empty()) {
            let ours = Catalog::get().named(name).any(|entry| !entry.chapter.starts_with("stdlib/"));
            assert!(!ours, "{name} ({first})");
        }
    }

    #[test]
    fn a_variance_is_a_squared_deviation() {
        assert_eq!(syntax("let v = x.var();", 1, 11), Some("there is no variance: write `x.std() ** 2`"));
        assert_eq!(syntax("var x = 3;", 1, 1), Some("write `let x = ..`"));
        assert!(function("topk", &[]).is_some() && function("isnan", &["Tensor".into()]).is_some());
    }
}
