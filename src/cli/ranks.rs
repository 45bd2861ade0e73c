//! The processes that a launcher started to work together, and what it says of them.

use amscript_base::bail;
use amscript_base::error::Result;
use amscript_base::group::Group;
use std::sync::Arc;

/// What a launcher tells its processes, by variables.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
}

/// The first that speaks is believed: `mpirun` may run inside of a job of SLURM.
const LAUNCHERS: [Launcher; 4] = [
    Launcher { name: "mpirun", rank: "OMPI_COMM_WORLD_RANK", size: "OMPI_COMM_WORLD_SIZE" },
    Launcher { name: "mpiexec", rank: "PMI_RANK", size: "PMI_SIZE" },
    Launcher { name: "srun", rank: "SLURM_PROCID", size: "SLURM_STEP_NUM_TASKS" },
    Launcher { name: "torchrun", rank: "RANK", size: "WORLD_SIZE" },
];

/// A process of several.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    launcher: &'static str,
    variable: &'static str,
    rank: usize,
    size: usize,
}

/// Where the environment says that this process is; none for one by itself. An environment that says half of it is refused.
fn place(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Place>> {
    for Launcher { name, rank, size } in LAUNCHERS {
        let number = |name: &str| match variable(name).map(|text| text.trim().parse::<usize>().map_err(|_| text)) {
            Some(Err(text)) => bail!(Value, "ranks: {name} must be a count, got \"{text}\""),
            Some(Ok(number)) => Ok(Some(number)),
            None => Ok(None),
        };
        match (number(rank)?, number(size)?) {
            (Some(at), Some(of)) if at >= of => bail!(Value, "ranks: {rank} must be below {size}, got {at} and {of}"),
            (Some(_), Some(1)) => return Ok(None),
            (Some(at), Some(of)) => return Ok(Some(Place { launcher: name, variable: size, rank: at, size: of })),
            // a batch script of SLURM has a rank and no step
            (Some(_), None) if name == "srun" => {}
            (None, None) => {}
            (found, _) => {
                let (there, missing) = if found.is_some() { (rank, size) } else { (size, rank) };
                bail!(
                    Missing, "ranks: {there} is set and {missing} is not: half of what {name} tells its processes";
                    hint: "start with `mpirun -n 4 amscript ..` or `srun`, or unset {there} for one process"
                );
            }
        }
    }
    Ok(None)
}

/// The processes that work on what is run; none for one by itself.
pub fn join() -> Result<Option<Arc<dyn Group>>> {
    let Some(place) = place(|name| std::env::var(name).ok())? else { return Ok(None) };
    let group = start(&place)?;
    if (group.rank(), group.size()) != (place.rank, place.size) {
        bail!(
            Value, "ranks: {} says {} processes, MPI found {}", place.variable, place.size, group.size();
            hint: "start them by the MPI that amscript was built with: `mpirun -n {}`, or `srun --mpi=pmix`", place.size
        );
    }
    Ok(Some(group))
}

#[cfg(feature = "mpi")]
fn start(_: &Place) -> Result<Arc<dyn Group>> {
    super::mpi::start()
}

#[cfg(not(feature = "mpi"))]
fn start(place: &Place) -> Result<Arc<dyn Group>> {
    bail!(
        Missing, "ranks: {} started {} processes ({}), and this binary was built without MPI", place.launcher, place.size, place.variable;
        hint: "build it with `cargo build --release --features mpi`; rows of a table need none: `--jobs {}`", place.size
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(set: &[(&str, &str)]) -> Result<Option<Place>> {
        place(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_say_how_many_there_are() {
        assert_eq!(found(&[]).unwrap(), None);
        let ompi = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4"), ("SLURM_STEP_NUM_TASKS", "1")];
        let place = Place { launcher: "mpirun", variable: "OMPI_COMM_WORLD_SIZE", rank: 2, size: 4 };
        assert_eq!(found(&ompi).unwrap(), Some(place));
        assert_eq!(found(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        assert_eq!(found(&[("SLURM_PROCID", "0")]).unwrap(), None);
        assert_eq!(found(&[("RANK", "1"), ("WORLD_SIZE", "2")]).unwrap().unwrap().launcher, "torchrun");
    }

    #[test]
    fn half_of_an_environment_is_refused_by_name() {
        let message = |set: &[(&str, &str)]| found(set).unwrap_err().message;
        assert_eq!(
            message(&[("WORLD_SIZE", "4")]),
            "ranks: WORLD_SIZE is set and RANK is not: half of what torchrun tells its processes"
        );
        assert!(message(&[("OMPI_COMM_WORLD_RANK", "1")]).contains("OMPI_COMM_WORLD_SIZE is not"));
        assert!(message(&[("RANK", "4"), ("WORLD_SIZE", "4")]).contains("RANK must be below WORLD_SIZE, got 4 and 4"));
        assert!(message(&[("RANK", "first"), ("WORLD_SIZE", "4")]).contains("RANK must be a count, got \"first\""));
    }
}
