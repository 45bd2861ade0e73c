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
    pub fn all(ast: &AST) -> Vec<Self> {
        ast.iter_functions().map(|f| Self::of(ast, &f)).collect()
    }

    fn of(ast: &AST, function: &rhai::ScriptFnMetadata) -> Self {
        let (name, n) = (function.name, function.params.len());
        // rhai's filter while cloning lets everything into an empty module
        let mut alone = ast.clone_functions_only();
        alone.retain_functions(|_, _, other, params| other == name && params == n);
        let mut statements = vec![];
        alone.walk(&mut |path: &[ASTNode]| {
            if let [ASTNode::Stmt(statement)] = path {
                statements.push((*statement).clone());
            }
            true
        });
        Self { name: name.into(), parameters: function.params.iter().map(|p| p.to_string()).collect(), statements }
    }

    pub fn is_closure(&self) -> bool {
        self.name.starts_with("anon$")
    }
}
