//! Two hosts in one process are apart: an interrupt, a profile and warnings of one are nothing to the other.

use amscript::Kind;
use amscript::script::{Host, Request, Session};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread::spawn;

/// Goes on until it is interrupted.
const ENDLESS: &str = "
    let field = velocity_field(|x, t, c| softmax(x, 1));
    print(1);
    while true { rollout(field, ones([1, 2]), (), #{ grid: uniform(100) }); }";

/// Two rollouts of `x' = -x` in four steps, from 1; between them it prints.
const TWICE: &str = "
    let field = velocity_field(|x, t, c| -x * softmax(x, 1));
    let first = rollout(field, ones([1, 1]), (), #{ grid: uniform(4) }).last;
    print(2);
    rollout(field, first, (), #{ grid: uniform(4) }).last.item()";

fn host(print: impl Fn() + Send + Sync + 'static) -> Host {
    Host::new(Session::new(Request::default(), Box::new(move |_| print())))
}

#[test]
fn interrupting_one_host_leaves_the_other_alone() {
    let ((begin, begun), (end, ended)) = (channel(), channel());
    let interrupted = host(move || begin.send(()).unwrap());
    let ended = Mutex::new(ended);
    let other = host(move || ended.lock().unwrap().recv().unwrap()); // its second rollout comes after the interrupt
    let contexts = [&interrupted, &other].map(|host| host.session().context().clone());
    contexts[1].profile.start(None);
    let session = interrupted.session().clone();
    let interrupted = spawn(move || (interrupted.run("endless", ENDLESS).unwrap_err(), interrupted));
    let other = spawn(move || other.run("twice", TWICE).unwrap().cast::<f64>());
    begun.recv().unwrap();
    session.interrupt();
    let (error, interrupted) = interrupted.join().unwrap();
    assert_eq!(error.kind, Kind::Interrupt);
    assert!(contexts[0].interrupt.asked() && !contexts[1].interrupt.asked());
    end.send(()).unwrap();
    assert_eq!(other.join().unwrap(), 0.75f64.powi(8));

    let profile = contexts[1].profile.finish().unwrap();
    assert_eq!((profile.phases["rollout"].calls, profile.ops["softmax"][0].calls), (2, 8));
    assert!(contexts[0].profile.finish().is_none());
    assert_eq!(interrupted.run("again", "softmax(ones([1, 1]), 1)").unwrap_err().kind, Kind::Interrupt);
    session.forget_interrupts();
    assert!(interrupted.run("again", "softmax(ones([1, 1]), 1)").is_ok());
}
