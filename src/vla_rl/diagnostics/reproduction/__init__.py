"""Why a checkpoint does not reach its published figure: settings, evidence for each cause, verdict."""
