//! The host inside a Rust program: scripts see functions of the program, the program sees what scripts return.
//!
//! `cargo run --example embed`
#![allow(clippy::print_stdout)]

use amscript::script::{Host, Request, Session};
use amscript::tensor::Tensor;
use std::path::PathBuf;

/// Public so that a test can run it.
pub fn main() -> amscript::Result<()> {
    // What `amscript run` takes from its command line. Scripts write nowhere but to `out`.
    let request = Request {
        out: Some(PathBuf::from("runs/embed")),
        overrides: vec![("steps".into(), "8".into())],
        ..Request::default()
    };
    let host = Host::new(Session::new(request, Box::new(|line| println!("script: {line}"))));

    let script = r#"
        let s = settings(#{ steps: 4, seed: 0 });
        let field = velocity_field(|x, t, c| 1 - x);
        print(`${s.steps} steps`);
        rollout(field, zeros([1, 1]), (), #{ grid: uniform(s.steps) }).last
    "#;
    let end = host.run("embedded script", script)?.cast::<Tensor>();
    println!("program: the flow ends at {:.4}", end.flatten_all()?.to_vec1::<f32>()?[0]);

    // Mistakes come back as values, with the place in the script and what was meant.
    let error = host.run("another script", "zeroes([2])").err().map(|e| e.to_string());
    println!("program: {}", error.unwrap_or_default());
    Ok(())
}
