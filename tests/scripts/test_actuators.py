import pytest

from ssm_metarl_gym.experiments.scoreboard.plan import all_runs, key_of


@pytest.fixture(scope="module")
def actuators(load_script):
    return load_script("actuators")


def write_lines(options, value):
    """Records of all runs."""
    scoreboard = options.scoreboard()
    for run in all_runs(scoreboard.names, scoreboard.rows, scoreboard.steps, scoreboard.num_seeds):
        for column in scoreboard.columns(run.physics):
            key = key_of(scoreboard.board, run, column)
            scoreboard.records.add(**key, returns=[value(run)] * options.num_tasks)
    return options.scoreboard()


@pytest.fixture
def options(actuators, tmp_path):
    return actuators.Options(
        dimensions=(1, 2), rows=("as_is", "corrected_filter", "told"), steps=(100, 200), seeds=2, output=tmp_path
    )


def test_dimensions_and_environments_are_families_of_the_scoreboard(actuators, tmp_path):
    options = actuators.Options(dimensions=(4,), aib=("ComplexODE",), output=tmp_path)
    assert options.scoreboard().names == ["PointActuators-4", "ComplexODE"]


def test_pictures_are_of_what_is_known(actuators, options):
    scoreboard = write_lines(options, lambda run: 10.0 * run.seed + run.steps)
    actuators.draw(options, scoreboard)
    assert (options.output / "return_by_dimension.png").exists()
    assert not (options.output / "return_by_steps.png").exists()  # of a dimension that was not asked for


def test_a_report_runs_nothing(actuators, options, capsys):
    write_lines(options, lambda run: 10.0 * run.seed)
    arguments = ["--report", "--dimensions", "1", "2", "--rows", "as_is", "told", "--steps", "100", "--seeds", "3"]
    actuators.main([*arguments, "--output", str(options.output)])
    printed = capsys.readouterr().out
    assert "PointActuators-2: mean return in 300 tasks" in printed
    assert "| told, 0.0001M | 5.0 [" in printed
    assert not (options.output / "return_by_dimension.png").exists()  # no row of those that it compares
