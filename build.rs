//! Files embedded by `include_dir!` count as sources: adding one rebuilds the crate.

fn main() {
    println!("cargo:rerun-if-changed=stdlib");
    println!("cargo:rerun-if-changed=scripts");
    println!("cargo:rerun-if-changed=examples");
}
