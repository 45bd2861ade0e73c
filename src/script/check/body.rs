//! The functions and closures of a file with their statements, which rhai hands out only one node after the other.

use rhai::{AST, ASTNode, Stmt};

/// A function, or a closure under the name that Rhai gives it.
pub(super) struct Body {
    pub name: String,
    /// Of a closure, the variables that it captures stand first.
    pub parameters: Vec<String>,
    pub statements: Vec<Stmt>,
}

impl Body {
    /// Ordered by name.
    pub fn all(ast: &AST) -> Vec<Self> {
        let mut bodies = vec![];
        // rhai's filter while cloning lets everything into an empty module
        Self::apart(ast.clone_functions_only(), &mut bodies);
        bodies
    }

    /// Takes functions apart by halves: for each of many, all of them cannot be copied.
    fn apart(mut ast: AST, bodies: &mut Vec<Self>) {
        let mut all: Vec<(String, usize)> =
            ast.iter_functions().map(|f| (f.name.to_string(), f.params.len())).collect();
        all.sort();
        all.dedup();
        if let [_, _, ..] = &all[..] {
            let (name, n) = &all[all.len() / 2];
            let mut first = ast.clone();
            first.retain_functions(|_, _, other, params| (other, params) < (name.as_str(), *n));
            ast.retain_functions(|_, _, other, params| (other, params) >= (name.as_str(), *n));
            Self::apart(first, bodies);
            Self::apart(ast, bodies);
        } else {
            bodies.extend(ast.iter_functions().next().map(|only| Self::of(&ast, &only)));
        }
    }

    /// The only function of a tree.
    fn of(ast: &AST, function: &rhai::ScriptFnMetadata) -> Self {
        let mut statements = vec![];
        ast.walk(&mut |path: &[ASTNode]| {
            if let [ASTNode::Stmt(statement)] = path {
                statements.push((*statement).clone());
            }
            true
        });
        Self {
            name: function.name.into(),
            parameters: function.params.iter().map(|p| p.to_string()).collect(),
            statements,
        }
    }

    pub fn is_closure(&self) -> bool {
        self.name.starts_with("anon$")
    }
}
