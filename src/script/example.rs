//! Examples in doc comments and Markdown: taken out, run, and compared with what they promise.

use super::{Host, Request, Session};
use amscript_base::error::Result;
use amscript_tensor::place;
use rhai::{AST, Dynamic, Scope};

/// A fenced script; `no_run` ones are only compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub code: String,
    pub run: bool,
}

/// Splits a doc comment into prose and its `rhai` fences.
pub fn extract(text: &str) -> (String, Vec<Example>) {
    let (mut prose, mut examples) = (String::new(), vec![]);
    let mut open: Option<Example> = None;
    for line in text.lines() {
        match (line.trim().strip_prefix("```"), open.as_mut()) {
            (Some(_), Some(_)) => examples.extend(open.take()),
            (Some(tag), None) if tag.split([' ', ',']).next() == Some("rhai") => {
                open = Some(Example { code: String::new(), run: !tag.contains("no_run") });
            }
            (_, Some(example)) => example.code += &format!("{line}\n"),
            _ => prose += &format!("{line}\n"),
        }
    }
    (prose.trim().into(), examples)
}

/// Lines up to one with an expectation, if one follows.
struct Step {
    code: String,
    line: usize,
    expected: Option<String>,
}

fn steps(code: &str) -> Vec<Step> {
    let (mut out, mut pending) = (vec![], String::new());
    for (i, line) in code.lines().enumerate() {
        let (program, expected) = line.split_once("//=>").map_or((line, None), |(p, e)| (p, Some(e.trim())));
        pending += &format!("{program}\n");
        if expected.is_some() {
            out.push(Step { code: std::mem::take(&mut pending), line: i + 1, expected: expected.map(Into::into) });
        }
    }
    if !pending.trim().is_empty() {
        out.push(Step { code: pending, line: code.lines().count(), expected: None });
    }
    out
}

/// Runs an example in a fresh host that writes to a temporary folder; what is wrong comes back as text.
///
/// `code //=> text` compares the value's debug text (`text ..` its beginning), `code //=> error: text` wants an error that
/// contains the text; other lines prepare.
pub fn check(example: &Example) -> std::result::Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let device = place::from_environment().map_err(|e| e.to_string())?;
    let request = Request { out: Some(folder.path().into()), device, ..Request::default() };
    let host = Host::new(Session::new(request, Box::new(|_| ())));
    if !example.run {
        // its variables may come from the prose around it
        return super::reader().compile(&example.code).map(drop).map_err(|e| e.to_string());
    }
    let exact = host.session().device().is_cpu();
    let mut runner = Runner { host, scope: Scope::new(), functions: AST::empty() };
    steps(&example.code).iter().try_for_each(|step| {
        let outcome = runner.run(&step.code);
        compare(step.expected.as_deref(), outcome, exact)
            .map_err(|e| format!("line {}: {}\n{e}", step.line, step.code.trim()))
    })
}

fn compare(expected: Option<&str>, outcome: Result<String>, exact: bool) -> std::result::Result<(), String> {
    match (expected.map(|e| e.strip_prefix("error:").map_or(Err(e), |text| Ok(text.trim()))), outcome) {
        (None, Ok(_)) => Ok(()),
        (Some(Err(value)), Ok(came)) if matches(value, &came) || !exact && alike(value, &came) => Ok(()),
        (Some(Err(value)), Ok(came)) => Err(format!("expected {value}\ngot      {came}")),
        (Some(Ok(text)), Err(e)) if e.to_string().contains(text) => Ok(()),
        (Some(Ok(text)), Err(e)) => Err(format!("expected an error with \"{text}\"\ngot \"{e}\"")),
        (Some(Ok(text)), Ok(came)) => Err(format!("expected an error with \"{text}\"\ngot {came}")),
        (_, Err(e)) => Err(format!("failed: {e}")),
    }
}

fn matches(expected: &str, came: &str) -> bool {
    expected.strip_suffix("..").map_or(expected == came, |start| came.starts_with(start.trim_end()))
}

/// The same words, and numbers with a point as near as another device's rounding: what holds on the processor is promised elsewhere up to that.
fn alike(expected: &str, came: &str) -> bool {
    let (expected, begins) = expected.strip_suffix("..").map_or((expected, false), |start| (start.trim_end(), true));
    let words = |text: &str| -> Vec<String> {
        let text = text.replace("cuda:0", "cpu");
        text.split(|c: char| !(c.is_ascii_alphanumeric() || "._-+".contains(c))).map(String::from).collect()
    };
    let near = |(a, b): (&String, &String)| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) if a.contains(['.', 'e']) => (x - y).abs() <= 1e-5 + 1e-3 * x.abs().max(y.abs()),
        _ => a == b,
    };
    let (expected, came) = (words(expected), words(came));
    (begins || expected.len() == came.len()) && expected.len() <= came.len() && expected.iter().zip(&came).all(near)
}

/// Runs pieces of one script after each other, keeping variables and functions.
pub struct Runner {
    pub host: Host,
    pub scope: Scope<'static>,
    pub functions: AST,
}

impl Runner {
    /// Runs one piece and shows its value as debug text.
    pub fn run(&mut self, code: &str) -> Result<String> {
        let value = self.eval(code)?;
        self.host.session().show(value)
    }

    /// Runs one piece and returns its value.
    pub fn eval(&mut self, code: &str) -> Result<Dynamic> {
        self.host.session().add_source("example", code);
        let ast = self.host.parse(&self.functions, &self.scope, "example", code)?;
        let ast = self.functions.merge(&ast);
        self.functions = ast.clone_functions_only();
        self.host.run_in(&mut self.scope, "example", &ast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(code: &str) -> std::result::Result<(), String> {
        check(&Example { code: code.into(), run: true })
    }

    #[test]
    fn examples_keep_variables_functions_and_closures() -> std::result::Result<(), String> {
        example(
            "fn double(x) { x * 2 }\nlet k = 3;\nlet f = |x| double(x) + k;\nf.call(1) //=> 5\nk = 4;\nf.call(1) //=> 6",
        )
    }

    #[test]
    fn wrong_promises_are_found() {
        assert!(example("1 + 1 //=> 3").unwrap_err().contains("got      2"));
        assert!(example("1 + 1 //=> error: no").unwrap_err().contains("expected an error"));
        assert!(example("nothing_here(1)").unwrap_err().contains("failed"));
        assert!(example("throw \"a\" //=> error: b").unwrap_err().contains("got \"a\""));
    }

    #[test]
    fn other_devices_may_round() {
        assert!(
            alike("tensor([1.0, 0.333333]) f32 cpu", "tensor([1.0, 0.33334]) f32 cuda:0")
                && alike("[0.5, ..", "[0.5, 2, 3]")
        );
        assert!(!alike("tensor([1.0])", "tensor([1.1])") && !alike("3", "4") && !alike("[1.0]", "[1.0, 2.0]"));
    }

    #[test]
    fn fences_are_taken_out_of_the_prose() {
        let (prose, examples) = extract("Sum.\n\nMore.\n```rhai\n1\n```\n```text\nkept\n```\n```rhai no_run\n2\n```");
        assert_eq!(prose, "Sum.\n\nMore.\n```text\nkept\n```");
        assert_eq!(examples.iter().map(|e| e.run).collect::<Vec<_>>(), [true, false]);
    }
}
