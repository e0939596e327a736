package tffperfedavg

import android.content.Context
import androidx.work.Constraints
import androidx.work.ExistingWorkPolicy
import androidx.work.OneTimeWorkRequest
import androidx.work.WorkManager
import androidx.work.Worker
import androidx.work.WorkerParameters
import java.io.File

/**
 * Adapts while the phone charges and lies idle; is stopped and tried again otherwise.
 *
 * The directory is the app's own; examples are the user's, so keep it out of backups
 * (`android:dataExtractionRules`).
 */
class AdaptWorker(context: Context, parameters: WorkerParameters) : Worker(context, parameters) {
    override fun doWork(): Result = try {
        val directory = File(applicationContext.filesDir, "personal")
        val shipped = File(applicationContext.filesDir, "model.tflite")
        PersonalModel(directory, shipped) { InterpreterRuntime(it) }.use { model ->
            model.adapt(isStopped = { isStopped })
        }
        if (isStopped) Result.retry() else Result.success()
    } catch (e: IllegalStateException) {
        // Too few examples yet: the next that is added schedules it again.
        Result.success()
    }

    companion object {
        /** Call after an example was added; work that waits already is kept. */
        fun schedule(context: Context) {
            val whenIdle = Constraints.Builder()
                .setRequiresCharging(true)
                .setRequiresDeviceIdle(true)
                .build()
            val request = OneTimeWorkRequest.Builder(AdaptWorker::class.java)
                .setConstraints(whenIdle)
                .build()
            WorkManager.getInstance(context)
                .enqueueUniqueWork("adapt", ExistingWorkPolicy.KEEP, request)
        }
    }
}
