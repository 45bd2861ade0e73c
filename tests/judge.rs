//! Rewards from outside: what a server and a program answer, late, short, wrong or well.

use amscript::permissions::{Allowed, Rights};
use amscript::script::{Host, Request, Session};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A server that gives these answers (status and body), the last one again and again; its address, and how often it was asked.
fn server(answers: &'static [(&'static str, &'static str)]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://127.0.0.1:{}/score", listener.local_addr().unwrap().port());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut question = vec![0; length];
            stream.read_exact(&mut question).unwrap();
            assert!(String::from_utf8(question).unwrap().contains("iVBORw0KGgo"), "a PNG in base64");
            let (status, body) = answers[count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.get_mut().write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
    (address, asked)
}

fn said(code: &str) -> Result<String, String> {
    let these = |names: &[&str]| Allowed::These(names.iter().map(|name| name.to_string()).collect());
    let allow = Rights { net: these(&["127.0.0.1"]), run: these(&["sh"]), ..Rights::default() };
    let host = Host::new(Session::new(Request { allow, ..Request::default() }, Box::new(|_| ())));
    host.run("recipe", code).map(|value| value.to_string()).map_err(|e| e.to_string())
}

/// What two images score.
fn scored(judge: &str, more: &str) -> Result<String, String> {
    said(&format!(
        "let j = {judge}; let x = cat([zeros([1, 3, 2, 2]), ones([1, 3, 2, 2])], 0); {more} j.score(x, [\"a\", \"b\"]).to_array()"
    ))
}

#[test]
fn a_server_is_asked_in_batches_and_once_for_each_image() {
    let (url, asked) = server(&[("200 OK", "{\"scores\": [0.5]}"), ("200 OK", "[2]"), ("200 OK", "[9]")]);
    let again = "j.score(x, [\"a\", \"b\"]); j.score(cat([x, x], 0), [\"a\", \"b\", \"a\", \"b\"]);";
    assert_eq!(scored(&format!("judge(\"{url}\", #{{ batch: 1 }})"), again).unwrap(), "[0.5, 2.0]");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn what_is_no_answer_is_asked_again_and_then_an_error() {
    let (url, asked) =
        server(&[("503 Busy", "later"), ("200 OK", "[1]"), ("200 OK", "nonsense"), ("200 OK", "[1, 2]")]);
    assert_eq!(scored(&format!("judge(\"{url}\")"), "").unwrap(), "[1.0, 2.0]");
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    for (answer, words) in [
        ("[1]", "expected 2 finite scores, one for each image, got [1.0]"),
        ("[1, 2, 3, 4, 5, 6, 7, 8, 9]", "got 9 scores, the first 8 being [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]"),
        ("[1, null]", "expected {\"scores\": [..]} or a list of numbers, got [1, null]"),
        ("{\"scores\": \"good\"}", "list of numbers"),
        ("<html>", "expected JSON, got \"<html>\""),
    ] {
        let (url, asked) = server(Box::leak(Box::new([("200 OK", answer)])));
        let error = scored(&format!("judge(\"{url}\", #{{ retries: 1 }})"), "").unwrap_err();
        assert!(error.contains(words) && asked.load(Ordering::SeqCst) == 2, "{error}");
    }
    let (url, asked) = server(&[("401 Unauthorized", "no key"), ("200 OK", "[1, 2]")]);
    assert!(scored(&format!("judge(\"{url}\")"), "").unwrap_err().contains("status 401 Unauthorized: no key"));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let (elsewhere, asked) = server(&[("200 OK", "[1, 2]")]);
    let moved = Box::leak(format!("302 Found\r\nLocation: {elsewhere}").into_boxed_str());
    let (url, _) = server(Box::leak(Box::new([(&*moved, "")])));
    assert!(scored(&format!("judge(\"{url}\")"), "").is_err() && asked.load(Ordering::SeqCst) == 0);
}

#[test]
fn closures_word_the_question_and_read_the_answer() {
    let (url, _) = server(&[("200 OK", "{\"choices\": [{\"text\": \"7\"}, {\"text\": \"8\"}]}")]);
    let options = "#{ ask: |prompts, images| #{ text: prompts[1], png: images[0] }, read: |answer| answer.choices.map(|c| parse_float(c.text)) }";
    assert_eq!(scored(&format!("judge(\"{url}\", {options})"), "").unwrap(), "[7.0, 8.0]");
}

#[cfg(unix)]
#[test]
fn a_program_answers_lines_and_is_begun_again_when_it_ends() {
    let program =
        |script: &str, options: &str| scored(&format!("judge([\"sh\", \"-c\", `{script}`], #{{ {options} }})"), "");
    assert_eq!(program("while read question; do echo [3, 4]; done", "").unwrap(), "[3.0, 4.0]");
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once").display().to_string();
    let ends = format!("read question; if [ -e {once} ]; then echo [5, 6]; else touch {once}; fi");
    assert_eq!(program(&ends, "").unwrap(), "[5.0, 6.0]");
    let late = program("read question; exec sleep 60", "timeout: 0.2, retries: 1").unwrap_err();
    assert!(late.contains("no answer in 0.2 s"), "{late}");
    // what it starts ends with it, or this would be there for a minute
    let kept = folder.path().join("kept").display().to_string();
    let starts = format!("sleep 60 & echo $! > {kept}; read question; echo [3, 4]; wait");
    assert_eq!(program(&starts, "").unwrap(), "[3.0, 4.0]");
    let id = std::fs::read_to_string(&kept).unwrap();
    let runs = || std::fs::read_to_string(format!("/proc/{}/stat", id.trim())).is_ok_and(|stat| !stat.contains(" Z "));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while runs() {
        assert!(std::time::Instant::now() < end, "it is still there");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(program("exit 0", "retries: 0").unwrap_err().contains("the program"));
}

#[test]
fn nobody_is_asked_who_was_not_allowed() {
    for (place, flag) in [
        ("\"http://localhost:1/\"", "--allow-net=localhost"),
        ("\"http://127.0.0.1@example.org/\"", "--allow-net=example.org"),
        ("[\"python3\"]", "--allow-run=python3"),
        ("[\"/bin/sh\"]", "--allow-run=/bin/sh"),
    ] {
        let error = said(&format!("judge({place})")).unwrap_err();
        assert!(error.contains(flag), "{error}");
    }
    for (place, words) in
        [("[]", "a program and its arguments"), ("\"\"", "an address such as"), ("3", "an address or an array")]
    {
        let error = said(&format!("judge({place})")).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn scores_have_no_gradient() {
    let error =
        said("grad(|x| judge(\"http://127.0.0.1:1/\").score(x, [\"a\"]).sum(), zeros([1, 3, 2, 2]))").unwrap_err();
    assert!(error.contains("a gradient is wanted"), "{error}");
}

#[test]
fn a_judge_may_be_asked_by_its_own_question() {
    let own =
        "let j = (); let ask = |p, i| { if p[0] == \"a\" { (j * 1.0).score(zeros([1, 3, 2, 2]), [\"b\"]); } #{} };
        j = judge([\"sh\", \"-c\", \"while read q; do echo [1]; done\"], #{ ask: ask });
        (j * 1.0).score(zeros([1, 3, 2, 2]), [\"a\"]).item()";
    assert_eq!(said(own).unwrap(), "1.0");
    let endless = own.replace("if p[0] == \"a\"", "if true").replace("[\"b\"]", "[p[0] + \"b\"]");
    assert!(said(&endless).unwrap_err().contains("inside one another"), "{:?}", said(&endless));
}
