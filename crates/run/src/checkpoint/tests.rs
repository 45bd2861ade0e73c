use super::*;
use amscript_base::context::Context;
use amscript_base::group::threads;
use amscript_tensor::Device;
use std::fs;

fn at(step: usize) -> Checkpoint {
    let tensor = |x: f32| Saved::Tensor(Tensor::new(&[x, 2.0], &Device::Cpu).unwrap());
    let moments = Saved::List(vec![tensor(step as f32), Saved::Number(3.3479716097422684)]);
    let state = Saved::Map(vec![
        ("weights".into(), Saved::Map(vec![("a.b".into(), tensor(step as f32))])),
        ("moments".into(), moments),
        ("name".into(), Saved::Plain(json!("x"))),
        // names that a state's own could be taken for
        ("$tensor".into(), Saved::Plain(json!("x"))),
        ("$$number".into(), Saved::Map(vec![("$number".into(), Saved::Plain(json!("x")))])),
        ("__metadata__".into(), tensor(1.0)),
        ("c/d".into(), tensor(2.0)),
        ("c".into(), Saved::Map(vec![("d".into(), tensor(3.0))])),
    ]);
    let streams = BTreeMap::from([("noise".into(), u128::MAX)]);
    Checkpoint { step, total: 100, state, streams, seconds: 0.5, log: json!({ "lines": 3 }) }
}

fn step(run: &Path) -> usize {
    latest(run).unwrap().0.map_or(0, |found| found.step)
}

/// By one process.
fn save(run: &Path, checkpoint: &Checkpoint) -> Result<PathBuf> {
    super::save(run, checkpoint, &|rank, name| bail!(Internal, "rank {rank} is asked for {name}"))
}

#[test]
fn what_ranks_share_is_saved_to_the_bytes_of_one_process() {
    let tensor = |i: usize| Tensor::new(&[i as f32, 0.5], &Device::Cpu).unwrap();
    let shard = |i: usize, rank: usize| {
        let own = (i == rank).then(|| tensor(i));
        Saved::Shard(Shard { owner: i, dtype: DType::F32, dims: vec![2], own })
    };
    let all = |of: &dyn Fn(usize) -> Saved| Checkpoint { state: Saved::List((0..3).map(of).collect()), ..at(1) };
    let (alone, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save(alone.path(), &all(&|i| Saved::Tensor(tensor(i)))).unwrap();
    let by_ranks = |lost: bool| {
        threads(3, |group| {
            let (context, rank) = (Context::default(), group.rank());
            assert!(context.group.set(group).is_ok());
            // `lost`: the third rank does not have what all say that it has.
            let checkpoint = all(&|i| shard(i, if lost && rank == 2 { 9 } else { rank }));
            let save = |ask: Ask| super::save(shared.path(), &checkpoint, ask).map(drop);
            context.enter(|| crate::ranks::save(&checkpoint, save))
        })
    };
    assert!(by_ranks(false).iter().all(Result::is_ok));
    for name in FILES {
        let [alone, shared] = [&alone, &shared].map(|run| std::fs::read(run.path().join("step-000001").join(name)));
        assert_eq!(alone.unwrap(), shared.unwrap(), "{name}");
    }
    for error in by_ranks(true) {
        assert!(error.unwrap_err().message.contains("rank 2: checkpoint: this rank must have `state/2`"));
    }
}

#[test]
fn the_last_checkpoint_comes_back_and_two_are_kept() {
    let run = tempfile::tempdir().unwrap();
    assert!(latest(run.path()).unwrap().0.is_none());
    for step in [5, 10, 100] {
        save(run.path(), &at(step)).unwrap();
    }
    let back = latest(run.path()).unwrap().0.unwrap();
    assert_eq!(format!("{back:?}"), format!("{:?}", at(100)));
    assert_eq!((fs::read_dir(run.path()).unwrap().count(), total(run.path())), (KEPT, Some(100)));
}

/// Each file of a checkpoint, each way to damage it.
#[test]
fn a_damaged_checkpoint_is_named_and_gives_way_to_the_one_before() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 4] = [
        (|file| fs::remove_file(file).unwrap(), "is missing"),
        (|file| fs::write(file, "").unwrap(), "is not what was written"),
        (|file| fs::write(file, [0xff]).unwrap(), "is not what was written"),
        (
            |file| {
                let mut bytes = fs::read(file).unwrap();
                let last = bytes.len() - 2;
                bytes[last] ^= 1;
                fs::write(file, bytes).unwrap();
            },
            "is not what was written",
        ),
    ];
    for name in FILES {
        for (damage, words) in damages {
            let run = tempfile::tempdir().unwrap();
            save(run.path(), &at(1)).unwrap();
            damage(&save(run.path(), &at(2)).unwrap().join(name));
            let (found, notes) = latest(run.path()).unwrap();
            assert_eq!((found.unwrap().step, notes.len()), (1, 1), "{name}");
            assert!(notes[0].contains("step-000002") && notes[0].contains(words), "{name}: {}", notes[0]);
            fs::remove_dir_all(run.path().join("step-000001")).unwrap();
            assert!(latest(run.path()).unwrap_err().message.contains("step-000002"));
        }
    }
}

#[test]
fn a_checkpoint_under_the_name_of_another_step_is_damaged() {
    let run = tempfile::tempdir().unwrap();
    let folder = save(run.path(), &at(4)).unwrap();
    fs::rename(folder, run.path().join("step-000009")).unwrap();
    assert!(latest(run.path()).unwrap_err().message.contains("the checkpoint of step 4"));
}

#[test]
fn what_was_saved_last_stays_beside_those_of_later_steps() {
    let run = tempfile::tempdir().unwrap();
    for step in [7, 8, 3] {
        save(run.path(), &at(step)).unwrap();
    }
    assert_eq!((step(run.path()), list(run.path()).unwrap().len()), (3, 1));
}

#[test]
fn what_a_kill_left_of_a_removal_goes_with_the_next_save() {
    let run = tempfile::tempdir().unwrap();
    for step in [1, 2, 3] {
        fs::create_dir(run.path().join(name(step))).unwrap();
    }
    fs::write(run.path().join(name(2)).join(STATE), "{}").unwrap();
    assert!(obstacle(run.path()).unwrap().is_none());
    for step in [3, 4] {
        save(run.path(), &at(step)).unwrap();
    }
    assert_eq!(entries(run.path()).unwrap().into_iter().collect::<Vec<_>>(), [name(3), name(4)]);
}

#[test]
fn folders_of_others_are_left_alone() {
    let run = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let held = save(elsewhere.path(), &at(1)).unwrap();
    let others = ["step-1/thesis.txt", "step-000001/thesis.txt", "step-000002/state.json", "step-000002/thesis.txt"];
    for name in others {
        fs::create_dir_all(run.path().join(name).parent().unwrap()).unwrap();
        fs::write(run.path().join(name), "mine").unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(&held, run.path().join("step-000000")).unwrap();
    assert!(obstacle(run.path()).unwrap().is_some());
    for step in [3, 4, 5, 6] {
        save(run.path(), &at(step)).unwrap();
    }
    recover(run.path()).unwrap();
    let kept = others.iter().filter(|name| run.path().join(name).exists()).count();
    assert_eq!((kept, held.join(STATE).exists()), (3, true), "a state.json beside others is taken for a checkpoint's");
    assert!(save(run.path(), &at(1)).unwrap_err().message.contains("step-000001"));
    assert!(run.path().join("step-000001/thesis.txt").exists());
}

/// Every operation of a save fails in turn, and every such save is followed by a kill: a whole checkpoint is there, and none is lost.
#[test]
fn a_write_that_fails_loses_no_checkpoint() {
    let context = Context::default();
    context.enter(|| {
        for (before, saved) in [(1, 2), (2, 2)] {
            let run = tempfile::tempdir().unwrap();
            let mut operations = 0;
            for failing in 1.. {
                save(run.path(), &at(before)).unwrap();
                let start = context.disk.asked();
                context.disk.fail(failing);
                let outcome = save(run.path(), &at(saved));
                let used = context.disk.asked() - start;
                context.disk.fail(usize::MAX / 2);
                if outcome.is_ok() && used < failing {
                    operations = used;
                    break;
                }
                recover(run.path()).unwrap();
                let found = step(run.path());
                assert!(found == before || found == saved, "operation {failing}: {found}");
                assert!(outcome.is_err(), "operation {failing}");
                save(run.path(), &at(saved)).unwrap();
                assert_eq!(entries(run.path()).unwrap().iter().filter(|name| name.starts_with('.')).count(), 0);
                fs::remove_dir_all(run.path().join(name(saved))).unwrap();
            }
            assert!(operations > 15, "{operations}");
        }
    });
}
