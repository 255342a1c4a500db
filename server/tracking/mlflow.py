"""MLflow: a server that the environment names, or a database in the run's folder."""

import os
import re

from server.tracking.tracker import Entry, Tracker

EXPERIMENT = "fed-mediffusion"
NOT_IN_A_KEY = re.compile(r"[^\w/.\- :]")


class MLflow(Tracker):
    """Logs to $MLFLOW_TRACKING_URI, or to `mlflow/mlflow.db` in the run's folder.

    It goes through MLflow's client, since the functions of the package would add the user's name,
    the program and the commit.
    """

    def begin(self, known: str | None) -> str:
        """Continues the MLflow run of this id, or creates one."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # The round waits for the answer, and a server that is away must not delay it by minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        from mlflow.tracking import MlflowClient

        given = os.environ.get("MLFLOW_TRACKING_URI")
        local = self.folder / "mlflow"
        if not given:
            local.mkdir(exist_ok=True)
        self._client = MlflowClient(tracking_uri=given or f"sqlite:///{local / 'mlflow.db'}")
        if known is None:
            found = self._client.get_experiment_by_name(EXPERIMENT)
            artifacts = None if given else (local / "artifacts").as_uri()
            experiment = (
                found.experiment_id
                if found
                else self._client.create_experiment(EXPERIMENT, artifact_location=artifacts)
            )
            run = self._client.create_run(experiment, run_name=self.folder.name)
        else:
            run = self._client.get_run(known)
            self._client.update_run(known, status="RUNNING")
        self._run, self._start = str(run.info.run_id), int(run.info.start_time)
        return self._run

    def take(self, entry: Entry) -> None:
        """Logs figures at the step of their round, and pictures as artifacts."""
        from mlflow.entities import Metric

        # MLflow's databases keep equal metrics once, so the time must not depend on the clock.
        moment = self._start + round(1000 * entry.seconds)
        metrics = [
            Metric(NOT_IN_A_KEY.sub("_", name), value, moment, entry.round_number)
            for name, value in entry.figures.items()
        ]
        for start in range(0, len(metrics), 1000):  # as many as a call may have
            self._client.log_batch(self._run, metrics=metrics[start : start + 1000])
        for name, path in entry.pictures.items():
            place = f"{name}/{entry.stage}-{entry.round_number:04d}"
            self._client.log_artifact(self._run, str(path), place)

    def end(self, completed: bool) -> None:
        """Sets the state of the MLflow run."""
        self._client.set_terminated(self._run, "FINISHED" if completed else "FAILED")
